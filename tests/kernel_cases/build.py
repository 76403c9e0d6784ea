"""Builds the kernels beside the installed ones: emulated, or watched by sanitizers. The recipe is setup.py's.

python tests/kernel_cases/build.py FOLDER    # sanitized, for `pytest --kernels FOLDER`
"""

import fcntl
import hashlib
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from blora.engine.kernels.instruction_sets import instruction_sets

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/kernels"
EMULATED = "emulated"  # the widest vectors, pairwise products and tiles, without the instructions for them
# Loads and stores of tiles are assembly, which no sanitizer sees: those of the emulation are what it watches.
# What is found ends the process: a message alone would be lost among the tests. -O1 keeps reads that -O3 may leave out.
QUICK = ["-O2"]  # compiled in half the time, and without fast-math the results are the same
SANITIZE = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def builds() -> list[str]:
    """The builds that are tested: every instruction set that this machine runs, and the emulation."""
    return [*instruction_sets(), EMULATED]


def path_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.so"


def build_emulated() -> Path:
    """Returns the path of the emulation. It is built when the sources have changed; test processes wait for one."""
    path, built_from = path_of(CACHE, EMULATED), CACHE / "built_from"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or built_from.read_text() != _digest():
            path.unlink(missing_ok=True)  # another process may have it mapped
            built_from.write_text(_digest())
            build(EMULATED, CACHE, QUICK)
    return path


def _digest() -> str:
    """Returns the digest of everything that the emulation is built from."""
    recipe = _recipe()
    digest = hashlib.sha256(repr([recipe["COMMON"], QUICK]).encode())
    for file in [*recipe["SOURCES"], *recipe["HEADERS"]]:
        digest.update((ROOT / file).read_bytes())
    return digest.hexdigest()


def build(name: str, folder: Path, extra: Sequence[str] = ()) -> Path:
    """Builds a library and returns its path in the folder. extra: flags, which come last."""
    path = path_of(folder, name)
    subprocess.run(_command(_recipe(), name, path, extra), cwd=ROOT, check=True)
    return path


def _recipe() -> dict[str, Any]:
    with patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


def _command(recipe: dict[str, Any], name: str, path: Path, extra: Sequence[str]) -> list[str]:
    flags = ["-DBLORA_EMULATE"] if name == EMULATED else recipe["FLAGS"][name]
    return ["g++", "-fPIC", "-shared", *recipe["COMMON"], *flags, *extra, *recipe["SOURCES"], "-o", str(path)]


if __name__ == "__main__":
    for build_name in builds():
        print(f"building {build_name} with sanitizers", flush=True)
        build(build_name, Path(sys.argv[1]), SANITIZE)
