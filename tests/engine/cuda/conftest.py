"""Engines of backend="cuda" without a GPU: on a recording device and a fake FlashInfer, which are the CPU's."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_flashinfer import FakeFlashInfer
from recording_device import RecordingDevice
from tiny import make_model

from blora.engine import LLM
from blora.engine.cuda import backend as cuda_backend

# Heads that FlashInfer has kernels for.
SIZES = {"hidden_size": 64, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def device() -> RecordingDevice:
    return RecordingDevice()


@pytest.fixture
def flashinfer(device: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> FakeFlashInfer:
    fake = FakeFlashInfer(launch=device.kernel)
    monkeypatch.setitem(sys.modules, "flashinfer", fake)
    monkeypatch.setattr(cuda_backend, "open_device", lambda: device)
    return fake


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("wide"), **SIZES)


@pytest.fixture
def make_pair(flashinfer: FakeFlashInfer) -> Iterator[Callable[..., tuple[LLM, LLM]]]:
    """Two engines of the same options, on the reference and on CUDA; in the end each has everything back, and the fake
    was asked."""
    made: list[LLM] = []

    def make(model: Path, **options: Any) -> tuple[LLM, LLM]:
        # float16 is precise enough to compare tokens, and Triton's interpreter knows it.
        defaults = {"dtype": "float16", "memory": "8MB", "block_size": 4, "max_num_batched_tokens": 64}
        made.extend(LLM(str(model), backend=backend, **defaults | options) for backend in ("reference", "cuda"))
        return made[-2], made[-1]

    yield make
    for llm in made:
        llm.check_idle()
    assert flashinfer.log.calls
