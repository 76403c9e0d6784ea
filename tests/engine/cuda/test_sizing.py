"""The size of a GPU's arena: it is measured, logged, and refused with the figures."""

import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from recording_device import RecordingDevice

from blora.adapters.triton.adapter_table import MAX_ARENA_BYTES
from blora.engine import LLM, EngineStartError, SamplingParams
from blora.engine.cuda.sizing import MemoryUse, PageNeeds, choose_num_pages, largest_step, measure
from blora.engine.memory.arena import Arena
from blora.engine.model.decoder import CausalLM
from blora.scheduler import Limits, Step

USE = MemoryUse(total=1000, others=50, weights=300, workspaces=100, activations=150, graphs=100)
NEEDS = PageNeeds(page_bytes=20, block_size=4, num_useful=1000)


class Trial:
    """A trial that takes a known number of bytes."""

    def __init__(self, device: RecordingDevice) -> None:
        self.device, self.captured = device, []
        device.hold(70)  # 30 of the arena, the rest workspaces

    def run(self, step: Step) -> None:
        assert len(step.rows) == 2
        self.device.hold(5)  # kernels that load at their first launch
        torch.zeros(64) + torch.zeros(64)

    def capture(self, size: int) -> None:
        self.captured.append(size)
        self.device.hold({8: 40, 4: 7}[size])


def test_every_part_is_measured() -> None:
    device, made = RecordingDevice(total_bytes=10_000), []
    device.hold(1000 + 100)  # others and weights
    step, num_pages = largest_step(Limits(9, 2), block_size=4, max_model_len=100)
    assert [row.num_new_tokens for row in step.rows] == [5, 4] and num_pages == 3

    def build() -> Trial:
        made.append(Trial(device))
        return made[0]

    use = measure(device, 1000, build, 30, step, [1, 2, 4, 8])
    assert use == MemoryUse(10_000, 1000, 100, 40 + 5, 3 * 256, 40 + 3 * 7)
    assert made[0].captured == [8, 4]
    assert use.left == 10_000 - 1100 - 45 - 768 - 61
    assert measure(device, 0, lambda: Trial(device), 30, step, []).graphs == 0


@pytest.mark.parametrize(
    ("limits", "max_model_len", "lengths"),
    [
        (Limits(8, 3), 100, [3, 3, 2]),
        (Limits(2, 3), 100, [1, 1]),
        (Limits(64, 1), 10, [10]),
    ],
)
def test_the_largest_step(limits: Limits, max_model_len: int, lengths: list[int]) -> None:
    step, num_pages = largest_step(limits, 4, max_model_len)
    assert [row.num_new_tokens for row in step.rows] == lengths
    assert all(row.is_sampled for row in step.rows)
    pages = [page for row in step.rows for page in row.block_table]
    assert pages == list(range(num_pages)) and num_pages == sum(-(-length // 4) for length in lengths)
    assert step.rows[0].sampling.prompt_logprobs is not None


@pytest.mark.parametrize(
    ("memory", "num_pages"), [(None, 13), (1.0, 15), (0.5, 7), ("0.5", 7), (100, 5), ("200B", 10), (300, 15)]
)
def test_the_arena_fills_what_the_budget_leaves(memory: int | float | str | None, num_pages: int) -> None:
    assert USE.left == 300
    assert choose_num_pages(memory, USE, NEEDS) == num_pages


def test_no_more_than_is_of_use() -> None:
    needs = PageNeeds(page_bytes=20, block_size=4, num_useful=6)
    assert choose_num_pages(None, USE, needs) == 6
    assert choose_num_pages(200, USE, needs) == 10  # the number that was asked for


def test_no_more_than_the_lora_kernels_can_number() -> None:
    """A GPU with 288 GB has more."""
    use = MemoryUse(total=288 << 30, others=0, weights=8 << 30, workspaces=0, activations=0, graphs=0)
    needs = PageNeeds(page_bytes=2 << 20, block_size=16, num_useful=1 << 30)
    assert choose_num_pages(1.0, use, needs) == MAX_ARENA_BYTES // (2 << 20) - 1
    with pytest.raises(EngineStartError, match="more than an arena can have"):
        choose_num_pages("260GiB", use, needs)


@pytest.mark.parametrize("memory", [301, 39, 0.1, "2GiB"])
def test_too_little_is_refused_with_the_figures(memory: int | float | str) -> None:
    with pytest.raises(EngineStartError, match=r"left on the GPU, 300: of .* GiB others have .* graphs"):
        choose_num_pages(memory, USE, NEEDS)


def test_a_model_that_leaves_nothing() -> None:
    use = MemoryUse(total=1000, others=50, weights=900, workspaces=100, activations=150, graphs=0)
    with pytest.raises(EngineStartError, match="left on the GPU, -200"):
        choose_num_pages(None, use, NEEDS)


Pair = Callable[..., tuple[LLM, LLM]]


def test_an_engine_tells_what_it_chose(
    make_pair: Pair, wide_model: Path, caplog: pytest.LogCaptureFixture, last_arena: Callable[[], Arena]
) -> None:
    with caplog.at_level(logging.INFO, logger="blora"):
        _, cuda = make_pair(wide_model, max_num_batched_tokens=256)
    (line,) = [record.message for record in caplog.records if record.message.startswith("GPU memory")]
    info = cuda.get_info()
    num_pages = info.num_pages
    assert f"the arena gets {num_pages} pages of 8192 bytes" in line and f"{num_pages * 4} tokens of KV" in line
    assert info.num_free_pages == num_pages == 8_000_000 // 8192
    assert len(last_arena().pages) == num_pages + 1


def test_an_engine_that_finds_too_little_does_not_start(
    make_pair: Pair, wide_model: Path, device: RecordingDevice
) -> None:
    make_pair(wide_model)
    device.hold((1 << 30) - 1_000_000)
    with pytest.raises(EngineStartError, match="the largest step"):
        make_pair(wide_model, memory=None, max_num_batched_tokens=256)


def test_a_trial_that_fails_is_told_in_a_line(
    make_pair: Pair, wide_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory does not suffice for the largest step, or FlashInfer's kernels find no compiler."""
    make_pair(wide_model)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    monkeypatch.setattr(CausalLM, "forward", Mock(side_effect=error))
    with pytest.raises(EngineStartError, match="the largest step cannot be computed: OutOfMemoryError: CUDA out of"):
        make_pair(wide_model)


def test_the_trial_is_gone_when_the_arena_is_made(
    make_pair: Pair, wide_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room for two arenas. The trial is part of no reference cycle, which would be freed too late."""
    arenas: list[weakref.ref[Arena]] = []
    original = Arena.__init__

    def noted(self: Arena, *args: Any) -> None:
        assert not [arena for arena in arenas if arena() is not None]
        original(self, *args)
        arenas.append(weakref.ref(self))

    make_pair(wide_model)
    gc.collect()
    gc.disable()
    try:
        monkeypatch.setattr(Arena, "__init__", noted)
        options = {"dtype": "float16", "memory": "8MB", "block_size": 4, "max_num_seqs": 2}
        llm = LLM(str(wide_model), backend="cuda", max_num_batched_tokens=64, **options)
        assert [arena() is None for arena in arenas] == [True, False]
    finally:
        gc.enable()
    sampling = SamplingParams(temperature=0, max_tokens=2)
    assert llm.generate("a", sampling, use_tqdm=False)
