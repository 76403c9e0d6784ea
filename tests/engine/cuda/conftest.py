"""Engines of backend="cuda" without a GPU: a recording device and a fake FlashInfer compute on the CPU."""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_flashinfer import FakeFlashInfer
from recording_device import RecordingDevice
from tiny import make_model
from watched import watch_made

from blora.adapters.lora import Segment
from blora.adapters.triton import kernels
from blora.adapters.triton.lora import TritonLoRA
from blora.engine import LLM
from blora.engine.attention.base import PagedRows
from blora.engine.attention.flashinfer import FlashInferAttention
from blora.engine.cuda import backend as cuda_backend
from blora.engine.cuda import graphs, library
from blora.engine.memory.arena import Arena

# The head_dim is one that FlashInfer has kernels for.
SIZES = {"hidden_size": 64, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def device() -> RecordingDevice:
    return RecordingDevice()


@pytest.fixture
def flashinfer(device: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFlashInfer]:
    fake = FakeFlashInfer(launch=device.kernel)
    monkeypatch.setitem(sys.modules, "flashinfer", fake)
    monkeypatch.setattr(library, "_check_tools", lambda: None)
    monkeypatch.setattr(cuda_backend, "open_device", lambda _=0: device)
    monkeypatch.setattr(graphs, "NUM_PROGRAMS", 3)  # the interpreter runs programs one after another
    for name in ("shrink", "expand"):
        monkeypatch.setattr(kernels, name, LaunchedKernel(device, getattr(kernels, name)))
    yield fake
    fake.log.calls.clear()  # with their arguments: each engine has a workspace of 128 MiB
    gc.collect()


class LaunchedKernel:
    """A Triton kernel that is launched on the device, so that the device can capture it."""

    def __init__(self, device: RecordingDevice, kernel: Any) -> None:
        self._device, self._kernel = device, kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self._device.kernel(lambda: self._kernel[grid](*args, **kwargs))

        return launch


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("wide"), **SIZES)


@pytest.fixture
def make_pair(flashinfer: FakeFlashInfer) -> Iterator[Callable[..., tuple[LLM, LLM]]]:
    """Makes two engines with the same options, on the reference and on CUDA. In the end, each has to have its memory
    back, and the fake has to have been called."""
    made: list[LLM] = []

    def make(model: Path, **options: Any) -> tuple[LLM, LLM]:
        # float16 is precise enough to compare tokens, and Triton's interpreter supports it.
        defaults = {"dtype": "float16", "memory": "8MB", "block_size": 4, "max_num_batched_tokens": 64}
        defaults |= {"enforce_eager": True}  # graphs have their own tests
        options = defaults | options
        made.append(LLM(str(model), backend="reference", **options | {"kv_cache_dtype": "auto"}))
        made.append(LLM(str(model), backend="cuda", **options))
        return made[-2], made[-1]

    yield make
    for llm in made:
        llm.check_idle()
    assert flashinfer.log.calls
    made.clear()


@pytest.fixture
def last_arena(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Arena]:
    """The arena of the engine that was built last."""
    return watch_made(monkeypatch, Arena)


@pytest.fixture
def last_graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], graphs.DecodeGraphs]:
    """Those of the engine that was built last."""
    return watch_made(monkeypatch, graphs.DecodeGraphs)


class PageWatch:
    """Records the pages of the arena that the kernels of each step read and write on the device, in replays too."""

    def __init__(self, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> None:
        """Watches engines that are built from now on."""
        self._device, self._monkeypatch = device, monkeypatch
        self._kv: set[int] = set()
        self._new: set[int] = set()
        self._weights: set[int] = set()
        self.written: set[int] = set()  # by rows, in any step
        self._before(FlashInferAttention, "plan", self._note_rows)
        self._before(FlashInferAttention, "refill", lambda attention, _, rows: self._note_rows(attention, rows))
        self._before(TritonLoRA, "plan", self._note_segments)
        self._before(FlashInferAttention, "run", lambda *_: device.kernel(self._note_attention))
        self._before(TritonLoRA, "run", lambda *_: device.kernel(self._note_lora))

    def _before(self, owner: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def noted(*args: Any) -> Any:
            note(*args)
            return original(*args)

        self._monkeypatch.setattr(owner, name, noted)

    def _note_rows(self, attention: FlashInferAttention, rows: PagedRows) -> None:
        spans = zip(rows.query_lens, rows.seq_lens, rows.block_tables, strict=True)
        size = attention._layout.block_size
        tables = [(table[: -(-end // size)], (end - length) // size) for length, end, table in spans]
        self._kv = {page for table, _ in tables for page in table}
        self._new = {page for table, first in tables for page in table[first:]}
        self._weights = set()

    def _note_segments(
        self, _: TritonLoRA, segments: Sequence[Segment], adapter_pages: Mapping[str, Sequence[int]]
    ) -> None:
        digests = {digest for segment in segments for digest, _ in segment.adapters}
        self._weights |= {page for digest in digests for page in adapter_pages[digest]}

    def _note_attention(self) -> None:
        self.written |= self._new
        self._device.note("attention", reads=self._kv, writes=self._new)

    def _note_lora(self) -> None:
        self._device.note("lora", reads=self._weights)


@pytest.fixture
def watch(flashinfer: FakeFlashInfer, device: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> PageWatch:
    assert flashinfer is sys.modules["flashinfer"]
    return PageWatch(device, monkeypatch)
