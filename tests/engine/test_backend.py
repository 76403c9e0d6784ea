"""Which native kernels a backend's name means."""

import pytest

from blora.engine import backend
from blora.engine.backend import kernels_of
from blora.engine.errors import EngineStartError
from blora.engine.kernels import library
from blora.engine.kernels.instruction_sets import INSTRUCTION_SETS, instruction_sets


def test_a_name_of_an_instruction_set_is_that_build() -> None:
    worst = instruction_sets()[-1]
    kernels, best = kernels_of(worst), kernels_of("cpu")
    assert kernels is not None
    assert kernels.instruction_set == worst
    assert best is not None
    assert best.instruction_set in instruction_sets()[:2]  # the next best one where the system refuses tile registers


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_what_the_machine_does_not_run_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "instruction_sets", lambda: ["other"])
    monkeypatch.setattr(backend, "load_kernels", library.load_kernels.__wrapped__)
    with pytest.raises(EngineStartError, match=f"this machine runs other, not {name}"):
        kernels_of(name)


def test_what_the_system_refuses_is_an_error_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise PermissionError(f"no registers of {name}")

    monkeypatch.setattr(backend, "load_kernels", refuse)
    with pytest.raises(EngineStartError, match="backend: no registers of base"):
        kernels_of("base")
