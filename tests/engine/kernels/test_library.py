"""The choice of a library, and its functions."""

import ctypes
import re
from ctypes import c_double, c_float, c_int32, c_uint64
from ctypes.util import find_library
from pathlib import Path

import pytest

from blora.engine.kernels import library
from blora.engine.kernels.library import Kernels

FOLDER = Path(library.__file__).parent
ENTRY = (FOLDER / "entry.h").read_text()
C_TYPES = {None: "void", c_int32: "int32_t", c_uint64: "uint64_t", c_float: "float", c_double: "double"}


def test_both_sides_count_the_same_interface() -> None:
    (number,) = re.findall(r"#define BLORA_INTERFACE (\d+)", ENTRY)
    assert int(number) == library.INTERFACE


def test_python_binds_the_functions_that_the_header_declares() -> None:
    """Names, results and arguments are compared; every pointer counts as `*`."""
    declared = re.findall(r"^BLORA_API (\w+) (\w+)\(([^)]*)\);", ENTRY, re.MULTILINE)
    bound = [
        (C_TYPES[result], name, [C_TYPES.get(argument, "*") for argument in arguments])
        for name, (result, arguments) in library.FUNCTIONS.items()
    ]
    assert sorted(bound) == sorted((result, name, c_types(arguments)) for result, name, arguments in declared)


def c_types(arguments: str) -> list[str]:
    """The type of each argument of a declaration."""
    each = [argument.split() for argument in arguments.split(",") if argument.strip()]
    return ["*" if any("*" in word for word in words) else words[0] for words in each]


def test_functions_are_declared_in_the_header_only() -> None:
    declared = set(re.findall(r"\bblora_\w+(?=\()", ENTRY))
    defined: list[str] = []
    for source in FOLDER.glob("*.cpp"):
        text = source.read_text()
        assert '#include "entry.h"' in text
        assert not re.findall(r"^\w.*\bblora_\w+\([^)]*\);", text, re.MULTILINE), f"{source.name} declares a function"
        defined += re.findall(r"^\w+ (blora_\w+)\([^)]*\) \{", text, re.MULTILINE)
    assert sorted(defined) == sorted(declared)


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = find_library("m")
    assert name is not None
    with pytest.raises(ValueError, match="built from other sources"):
        Kernels("math", Path(name))
    monkeypatch.setattr(library, "INTERFACE", library.INTERFACE + 1)
    assert library.load_kernels.__wrapped__() is None


def test_a_library_that_lacks_a_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "FUNCTIONS", {**library.FUNCTIONS, "blora_of_later": (None, ())})
    assert library.load_kernels.__wrapped__() is None


@pytest.mark.parametrize("name", ["nothing", "*", library.instruction_sets()[0]])
def test_what_the_machine_does_not_run_is_not_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "instruction_sets", lambda: ["other"])
    with pytest.raises(ValueError, match=f"this machine runs other, not {re.escape(name)}"):
        library.load_kernels.__wrapped__(name)


def test_the_next_best_is_taken_where_the_system_refuses_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    best, *others = library.instruction_sets()

    class Refused(ctypes.PyDLL):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            if Path(name).name.startswith(f"_{best}."):
                self.blora_may_run = lambda: 0

    monkeypatch.setattr(ctypes, "PyDLL", Refused)
    with pytest.raises(PermissionError, match=f"the registers of {best}"):
        library.load_kernels.__wrapped__(best)
    chosen = library.load_kernels.__wrapped__()
    assert (chosen.instruction_set if chosen else None) == (others[0] if others else None)
