"""DecodeGraphs: CUDA graphs of steps of decode rows, one for each size. A graph replaces the launch of every kernel.

A graph keeps the tensors that it was captured with. A step is written into them: its tokens, its positions, the tables
of attention, and the lists that the LoRA kernels loop over, so that adapters of any shard come and go without another
capture. A step with fewer rows than its graph is padded with rows that write and read one page, which no request ever
gets. A step that fits no graph is left to the caller, who launches its kernels one by one.

A graph ends with the hidden states. Its result has memory of its own, which no other graph may use; logits, as wide as
the vocabulary, would take gigabytes for all sizes together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from blora.adapters.triton.lora import TritonLoRA, TritonMetadata
from blora.adapters.triton.step_table import StepSize, possible_block_rows
from blora.scheduler import ScheduledRow

from ..attention.base import PagedRows
from ..attention.flashinfer import FixedDecode, FlashInferAttention
from ..model.batch import ForwardBatch
from ..step.backend import Backend
from ..step.device import Device, Graph
from ..step.inputs import segments_of

# The programs of a LoRA kernel in a graph. They share the work of the step; a program without work ends at once. The
# largest GPU runs as many at a time: 8 on each of 132 multiprocessors (H100).
NUM_PROGRAMS = 1056
MAX_RANK_GROUPS = 8  # groups of 16 shards that a graph's scratch holds if all its rows have adapters


@dataclass(frozen=True, slots=True)
class Captured:
    graph: Graph
    hidden: Tensor  # [size, hidden_size], written by each replay
    lora: TritonMetadata | None = None  # the input of its LoRA kernels; None: it launches none


@dataclass(frozen=True, slots=True)
class Sized:
    """The graphs of one number of rows, and their buffers."""

    token_ids: Tensor  # [size] int64
    positions: Tensor  # [size] int64
    attention: FixedDecode
    without_lora: Captured  # for a step of base rows
    with_lora: Mapping[int, Captured]  # by the rows of a strip, which share one read of each weight

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)


class DecodeGraphs:
    def __init__(self, device: Device, backend: Backend, scratch_page: int, pages_per_row: int, max_pages: int) -> None:
        """backend: FlashInfer's and Triton's.
        scratch_page: a page of the arena that no request gets.
        pages_per_row: the pages of the longest sequence.
        max_pages: the most pages of all rows of a step together; a step with more fits no graph.
        """
        self._device, self._backend = device, backend
        self._attention, self._lora = _own(backend)
        self._scratch_page = scratch_page
        self._pages_per_row, self._max_pages = pages_per_row, max_pages
        self._sized: dict[int, Sized] = {}
        self._first: Graph | None = None  # all graphs share its memory

    @property
    def sizes(self) -> list[int]:
        return sorted(self._sized)

    @torch.inference_mode()
    def capture(self, sizes: Iterable[int], progress: bool) -> None:
        """Captures graphs of these sizes, the largest first: the others reuse its memory.

        progress: whether a bar is shown on stderr.
        """
        descending = sorted(sizes, reverse=True)
        for size in tqdm(descending, desc="capturing graphs", unit=" sizes", disable=not progress):
            self._sized[size] = self._capture(size)

    def _capture(self, size: int) -> Sized:
        device = self._device.torch_device
        token_ids, positions = (torch.zeros(size, dtype=torch.int64, device=device) for _ in range(2))
        attention = self._attention.plan_fixed(size, min(size * self._pages_per_row, self._max_pages + size))
        self._attention.refill(attention, self._padded([], size))
        batch = ForwardBatch(token_ids, positions, torch.arange(size, device=device), attention, None)
        without_lora = self._captured(batch)
        with_lora = {
            block_rows: self._captured(batch, self._plan_lora(size, block_rows))
            for block_rows in possible_block_rows(size)
        }
        return Sized(token_ids, positions, attention, without_lora, with_lora)

    def _plan_lora(self, size: int, block_rows: int) -> TritonMetadata:
        step = StepSize(block_rows, num_uses=size, num_strips=size, num_rows=size, num_groups=MAX_RANK_GROUPS)
        return self._lora.plan_fixed(step, NUM_PROGRAMS)

    def _captured(self, batch: ForwardBatch, lora: TritonMetadata | None = None) -> Captured:
        batch, model = replace(batch, lora=lora), self._backend.model
        graph, hidden = self._device.capture(lambda: model.forward(batch), beside=self._first)
        self._first = self._first or graph
        return Captured(graph, hidden, lora)

    def run(self, rows: Sequence[ScheduledRow], adapter_pages: Mapping[str, Sequence[int]]) -> Tensor | None:
        """Replays a step. Returns the logits of the rows, [num_rows, vocab_size] float32; None, with nothing launched,
        for a step that fits no graph. rows, adapter_pages: as for `build_batch`."""
        sized = self._sized_for(rows)
        if sized is None:
            return None
        captured = self._fill_lora(sized, rows, adapter_pages)
        if captured is None or not self._attention.refill(sized.attention, self._padded(rows, sized.num_rows)):
            return None
        self._fill_tokens(sized, rows)
        captured.graph.replay()
        return self._backend.model.compute_logits(captured.hidden[: len(rows)])

    def _sized_for(self, rows: Sequence[ScheduledRow]) -> Sized | None:
        if not all(row.num_new_tokens == 1 and row.is_sampled for row in rows):
            return None
        size = next((size for size in self.sizes if size >= len(rows)), None)
        return None if size is None else self._sized[size]

    def _fill_lora(
        self, sized: Sized, rows: Sequence[ScheduledRow], adapter_pages: Mapping[str, Sequence[int]]
    ) -> Captured | None:
        """Writes the step's adapters into the buffers. Returns the graph of this size that computes them, or None."""
        segments = segments_of(rows)
        if not segments:
            return sized.without_lora
        if any(self._lora.changes_head(digest) for segment in segments for digest, _ in segment.adapters):
            return None  # the logits of these rows are computed apart, and may be wider
        planned = self._lora.plan(segments, adapter_pages)
        captured = sized.with_lora[planned.size.block_rows]
        assert captured.lora is not None
        return captured if self._lora.refill(captured.lora, planned) else None

    def _fill_tokens(self, sized: Sized, rows: Sequence[ScheduledRow]) -> None:
        tokens = np.zeros((2, sized.num_rows), dtype=np.int64)
        tokens[:, : len(rows)] = [row.token_ids[row.start] for row in rows], [row.start for row in rows]
        (sent,) = self._backend.send(tokens)
        sized.token_ids.copy_(sent[0])
        sized.positions.copy_(sent[1])

    def _padded(self, rows: Sequence[ScheduledRow], size: int) -> PagedRows:
        num_more = size - len(rows)
        return PagedRows(
            query_lens=[1] * size,
            seq_lens=[*(row.end for row in rows), *[1] * num_more],
            block_tables=[*(row.block_table for row in rows), *[[self._scratch_page]] * num_more],
        )


def _own(backend: Backend) -> tuple[FlashInferAttention, TritonLoRA]:
    attention, lora = backend.attention, backend.lora
    if not isinstance(attention, FlashInferAttention) or not isinstance(lora, TritonLoRA):
        raise TypeError(f"backend: {type(attention).__name__} and {type(lora).__name__} have no buffers for graphs")
    return attention, lora
