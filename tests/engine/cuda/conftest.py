"""Engines of backend="cuda" without a GPU: on a recording device and a fake FlashInfer, which are the CPU's."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_flashinfer import FakeFlashInfer
from recording_device import RecordingDevice
from tiny import make_model

from blora.adapters.lora import Segment
from blora.engine import LLM
from blora.engine.attention.base import PagedRows
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


class PageWatch:
    """Notes on the device which pages of the arena the kernels of each step read and write, replayed ones included."""

    def __init__(self, device: RecordingDevice, llm: LLM) -> None:
        self._device = device
        core = llm._core
        self._block_size = core.arena.layout.block_size
        self._kv: set[int] = set()
        self._new: set[int] = set()
        self._weights: set[int] = set()
        self.written: set[int] = set()  # ever, by rows
        device.watch(core.arena.pages)
        attention, lora = core._runner._attention, core._runner._lora
        self._before(attention, "plan", self._note_rows)
        self._before(attention, "refill", lambda _, rows: self._note_rows(rows))
        self._before(lora, "plan", self._note_segments)
        self._before(attention, "run", lambda *_: device.kernel(self._note_attention))
        self._before(lora, "run", lambda *_: device.kernel(self._note_lora))

    def _before(self, owner: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def noted(*args: Any) -> Any:
            note(*args)
            return original(*args)

        setattr(owner, name, noted)

    def _note_rows(self, rows: PagedRows) -> None:
        spans = zip(rows.query_lens, rows.seq_lens, rows.block_tables, strict=True)
        size = self._block_size
        tables = [(table[: -(-end // size)], (end - length) // size) for length, end, table in spans]
        self._kv = {page for table, _ in tables for page in table}
        self._new = {page for table, first in tables for page in table[first:]}
        self._weights = set()

    def _note_segments(self, segments: list[Segment], adapter_pages: dict[str, list[int]]) -> None:
        digests = {digest for segment in segments for digest, _ in segment.adapters}
        self._weights |= {page for digest in digests for page in adapter_pages[digest]}

    def _note_attention(self) -> None:
        self.written |= self._new
        self._device.note("attention", reads=self._kv, writes=self._new)

    def _note_lora(self) -> None:
        self._device.note("lora", reads=self._weights)
