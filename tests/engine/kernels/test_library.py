"""Which libraries are loaded."""

import ctypes
import re
from ctypes.util import find_library
from pathlib import Path

import pytest

from blora.engine.kernels import library
from blora.engine.kernels.library import Kernels

TYPES = Path(library.__file__).parent / "types.h"


def test_both_sides_count_the_same_interface() -> None:
    (number,) = re.findall(r"#define BLORA_INTERFACE (\d+)", TYPES.read_text())
    assert int(number) == library.INTERFACE


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = find_library("m")
    assert name is not None
    with pytest.raises(ValueError, match="built from other sources"):
        Kernels("math", Path(name))
    monkeypatch.setattr(library, "INTERFACE", library.INTERFACE + 1)
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
