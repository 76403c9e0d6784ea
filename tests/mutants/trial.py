"""Trial: runs tests against changed sources, in a fork of this process, which has imported all but blora.

The sources change in memory, where a module is imported. So tests of other processes see no change: tests that start
none are the ones to run.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parent.parent.parent
# The plugins that are imported already would be warned of, and warnings are errors.
OPTIONS = (
    "-x",
    "-q",
    "-m",
    "not slow",
    "-p",
    "no:cacheprovider",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
    "--hypothesis-seed=0",
)
HEAVY = ("pytest", "hypothesis", "numpy", "torch", "tokenizers", "transformers", "peft", "msgspec")


class Verdict(Enum):
    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    BROKEN = "no test ran"


def warm_up() -> None:
    """Imports what every trial needs, once."""
    for name in HEAVY:
        importlib.import_module(name)
    if any(name.startswith("blora") for name in sys.modules):
        raise RuntimeError("blora is imported already: its sources can no longer be changed")


def run_tests(sources: Mapping[str, str], tests: Sequence[str], seconds: float, cpu_seconds: int = 600) -> Verdict:
    """sources: new texts of files, by paths from the root. tests: as pytest's command line has them. seconds: the
    limit. cpu_seconds: of computing, which a loop without an end uses up; the kernel ends it."""
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, resource.RLIM_INFINITY))
        _run(sources, tests)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return _verdict(os.waitstatus_to_exitcode(status))
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return Verdict.TIMED_OUT


def _verdict(code: int) -> Verdict:
    """code: pytest's exit code, or the signal that ended the process, negated."""
    return {0: Verdict.PASSED, 3: Verdict.BROKEN, 4: Verdict.BROKEN, 5: Verdict.BROKEN}.get(code, Verdict.FAILED)


def _run(sources: Mapping[str, str], tests: Sequence[str]) -> None:
    """Never returns."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.meta_path.insert(0, _Changed(sources))
    os.chdir(ROOT)
    try:
        os._exit(pytest.main([*OPTIONS, *tests], plugins=[_NoShrinking()]))
    finally:
        os._exit(pytest.ExitCode.INTERNAL_ERROR)


class _NoShrinking:
    """Has random cases only fail: nobody reads the shortest one."""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        settings.register_profile("trial", settings.get_profile("few"), phases=(Phase.explicit, Phase.generate))
        settings.load_profile("trial")


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of changed sources."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = {"blora." + path.removesuffix(".py").replace("/", "."): path for path in sources}
        self._texts = sources

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name in self._sources else None

    def exec_module(self, module: ModuleType) -> None:
        path = self._sources[module.__name__]
        exec(compile(self._texts[path], path, "exec"), module.__dict__)
