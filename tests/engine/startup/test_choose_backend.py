"""The native kernels that a backend's name selects."""

from pathlib import Path

import pytest
import torch

from blora.engine.cpu import backend
from blora.engine.cpu.backend import kernels_of
from blora.engine.errors import EngineStartError
from blora.engine.kernels import library
from blora.engine.kernels.instruction_sets import INSTRUCTION_SETS, instruction_sets
from blora.engine.model_files.read_config import load_model_config
from blora.engine.startup import choose_backend as choose_backend_module
from blora.engine.startup.choose_backend import choose_backend


def test_a_name_of_an_instruction_set_is_that_build() -> None:
    worst = instruction_sets()[-1]
    kernels, best = kernels_of(worst), kernels_of("cpu")
    assert kernels is not None
    assert kernels.instruction_set == worst
    assert best is not None
    assert best.instruction_set in instruction_sets()[:2]  # the second best one if the system refuses tile registers


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


def test_without_a_build_auto_falls_back_with_one_warning_and_cpu_refuses(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose_backend_module, "has_gpu", lambda: False)
    monkeypatch.setattr(backend, "load_kernels", lambda *_: None)
    config = load_model_config(tiny_model)
    choice = choose_backend("auto", config, torch.float32, 16)
    assert choice == choose_backend("reference", config, torch.float32, 16)
    (warning,) = caplog.records
    assert "falling back to the reference kernels" in warning.message
    assert "install blora again, with a C++ compiler" in warning.message
    with pytest.raises(EngineStartError, match="the native kernels cannot be used: they were not built"):
        choose_backend("cpu", config, torch.float32, 16)
