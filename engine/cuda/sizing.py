"""Sizing: the number of pages in the arena of a GPU, from the measured memory of a trial: the largest step, two graphs.

The trial runs on an arena that is just large enough for it. One thing is assumed, not measured: each further graph
takes as much memory as the second one took, which shares the first one's.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from blora.adapters.triton.adapter_table import MAX_ARENA_BYTES
from blora.scheduler import Limits, SamplingParams, ScheduledRow, Step

from ..errors import EngineStartError
from ..memory.budget import is_fraction, parse_memory
from ..step.device import Device

logger = logging.getLogger(__name__)
DEFAULT_SHARE = 0.9  # of the memory left: the driver and other processes need some, and memory is fragmented


class Trial(Protocol):
    """An engine that is built, measured and dropped."""

    def run(self, step: Step) -> object: ...

    def capture(self, size: int) -> None:
        """Captures the graphs of one number of rows."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The memory of a GPU, in bytes, by use."""

    total: int
    others: int  # taken before this engine loaded anything
    weights: int
    workspaces: int  # of libraries and kernels, never released
    activations: int  # of the largest step, at their peak
    graphs: int

    @property
    def left(self) -> int:
        return self.total - self.others - self.weights - self.workspaces - self.activations - self.graphs

    def describe(self) -> str:
        return (
            f"of {_gib(self.total)} GiB others have {_gib(self.others)}, weights {_gib(self.weights)}, workspaces "
            f"{_gib(self.workspaces)}, the largest step {_gib(self.activations)}, graphs {_gib(self.graphs)}; "
            f"{_gib(self.left)} are left"
        )


@dataclass(frozen=True, slots=True)
class PageNeeds:
    page_bytes: int
    block_size: int  # tokens
    num_useful: int  # pages that all requests together can fill, and some to spare


def graph_sizes(max_num_seqs: int) -> list[int]:
    """The numbers of rows that graphs are captured for, ascending: 1, 2, 4, 8, 16, 24, ... and max_num_seqs."""
    return sorted({size for size in (1, 2, 4, *range(8, max_num_seqs, 8)) if size < max_num_seqs} | {max_num_seqs})


def largest_step(limits: Limits, block_size: int, max_model_len: int) -> tuple[Step, int]:
    """Makes the largest possible step: all rows and tokens, all rows sampled, one row with prompt logprobs, whose
    logits are the largest of all. Returns the step and the number of pages that it uses, from page 0 on."""
    num_rows = min(limits.max_num_seqs, limits.max_num_batched_tokens)
    shortest, num_longer = divmod(limits.max_num_batched_tokens, num_rows)
    rows: list[ScheduledRow] = []
    num_pages = 0
    for index in range(num_rows):
        length = min(shortest + (index < num_longer), max_model_len)
        count = -(-length // block_size)
        rows.append(_row(index, length, range(num_pages, num_pages + count)))
        num_pages += count
    return Step((), rows, {}), num_pages


def _row(index: int, length: int, pages: range) -> ScheduledRow:
    is_told = index == 0
    sampling = SamplingParams(temperature=1.0, top_p=0.9, prompt_logprobs=1) if is_told else SamplingParams()
    return ScheduledRow(
        request_id=index,
        start=0,
        num_new_tokens=length,
        token_ids=[0] * length,
        num_prompt_tokens=length,
        block_table=pages,
        adapters=(),
        activation=0,
        sampling=sampling,
        seed=0,
        sample_index=0,
        stop_token_ids=frozenset(),
    )


def measure(
    device: Device,
    others: int,
    build_trial: Callable[[], Trial],
    trial_bytes: int,
    step: Step,
    sizes: Sequence[int],
) -> MemoryUse:
    """Measures the memory of a trial. The weights are loaded already.

    others: bytes that were taken before the weights were loaded.
    build_trial: builds a trial with an arena of trial_bytes, which are not counted.
    sizes: the numbers of rows that graphs will be captured for.
    Raises EngineStartError if the trial fails: for lack of memory, or because a kernel cannot be compiled.
    """
    before = device.memory()
    try:
        activations, free, graphs = _try(device, build_trial, step, sizes)
    except Exception as error:
        raise EngineStartError(f"the largest step cannot be computed: {type(error).__name__}: {error}") from error
    device.memory()  # returns the trial's memory before anything takes its place
    return MemoryUse(
        total=before.total,
        others=others,
        weights=before.total - others - before.free,
        workspaces=max(before.free - free - trial_bytes, 0),
        activations=activations,
        graphs=graphs,
    )


def _try(device: Device, build_trial: Callable[[], Trial], step: Step, sizes: Sequence[int]) -> tuple[int, int, int]:
    """Returns the peak of the step, the memory free after it, and the memory of all graphs."""
    trial = build_trial()
    activations = device.measure_peak(lambda: trial.run(step))
    return activations, device.memory().free, _measure_graphs(device, trial, sizes)


def _measure_graphs(device: Device, trial: Trial, sizes: Sequence[int]) -> int:
    """Captures the two largest graphs. Every other one is taken to need as much as the second, which shares memory."""
    taken: list[int] = []
    for size in sorted(sizes, reverse=True)[:2]:
        free = device.memory().free
        trial.capture(size)
        taken.append(free - device.memory().free)
    return sum(taken) + (len(sizes) - len(taken)) * taken[-1] if taken else 0


def choose_num_pages(memory: int | float | str | None, use: MemoryUse, needs: PageNeeds) -> int:
    """The number of pages of the arena. Raises EngineStartError for an amount of memory that the GPU cannot give.

    memory: the option; None: DEFAULT_SHARE of the memory left.
    """
    wish = DEFAULT_SHARE if memory is None else memory
    budget = parse_memory(wish, max(use.left, 0))
    most = MAX_ARENA_BYTES - needs.page_bytes  # the arena has one page more than requests and adapters use
    if is_fraction(wish):
        budget = min(budget, needs.num_useful * needs.page_bytes, most)
    if budget > most:
        raise EngineStartError(f"memory: {budget} bytes are more than an arena can have, {most}")
    if not 2 * needs.page_bytes <= budget <= use.left:
        raise EngineStartError(
            f"memory: {budget} bytes is not between two pages ({2 * needs.page_bytes}) and the bytes left on the GPU, "
            f"{use.left}: {use.describe()}; lower max_num_batched_tokens or max_num_seqs to leave more"
        )
    num_pages = budget // needs.page_bytes
    logger.info(
        "GPU memory: %s; the arena gets %d pages of %d bytes (%s GiB), %d tokens of KV without adapters",
        use.describe(), num_pages, needs.page_bytes, _gib(num_pages * needs.page_bytes), num_pages * needs.block_size,
    )  # fmt: skip
    return num_pages


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f}"
