"""Every exception class of the packages passes to another process, as Ray and multiprocessing send it: by pickle."""

import ast
import builtins
import copy
import inspect
import pickle
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("scheduler", "adapters", "proto", "engine", "bench")


@cache
def classes() -> list[tuple[str, str, set[str]]]:
    """The module, the name and the names of the bases of each class of the packages."""
    found = []
    for path in [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]:
        module = ".".join(["blora", *path.relative_to(ROOT).with_suffix("").parts])
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.append((module, node.name, {ast.unparse(base).split(".")[-1] for base in node.bases}))
    return found


@cache
def exceptions() -> list[type[BaseException]]:
    names = {name for name, value in vars(builtins).items() if inspect.isclass(value) and is_exception(value)}
    ours: dict[str, str] = {}  # name -> module
    while more := {name: module for module, name, bases in classes() if name not in ours and bases & names}:
        ours |= more
        names |= more.keys()
    return [getattr(import_module(module), name) for name, module in ours.items()]


def is_exception(value: type) -> bool:
    return issubclass(value, BaseException)


def sample(kind: type[BaseException]) -> tuple[BaseException, list[str]]:
    """An exception of this class, and the texts that were put into it."""
    if not inspect.isfunction(kind.__init__):  # that of Python's own exceptions
        return kind("<0>"), ["<0>"]
    types = [str(parameter.annotation) for parameter in inspect.signature(kind.__init__).parameters.values()][1:]
    texts = [f"<{index}>" for index in range(len(types))]
    is_list = ["list" in type_ or "Sequence" in type_ for type_ in types]
    return kind(*([text] if many else text for text, many in zip(texts, is_list, strict=True))), texts


@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_exception_survives_copy_and_pickle(
    kind: type[BaseException], again: Callable[[BaseException], BaseException]
) -> None:
    error, texts = sample(kind)
    error.noticed = "by a test"  # type: ignore[attr-defined]
    other = again(again(error))
    assert type(other) is kind and vars(other) == vars(error)
    assert [str(other).count(text) for text in texts] == [1] * len(texts) and str(other) == str(error)


def test_all_exceptions_were_found() -> None:
    names = {kind.__name__ for kind in exceptions()}
    assert {"AdapterNotFound", "AdapterRejected", "CheckpointError", "ConfigError", "InvalidRequest"} <= names
    assert {"ChannelClosed", "RequestFailed", "PatternTooSlow", "TextError", "WorkerFailed"} <= names
