"""Which libraries are loaded."""

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
