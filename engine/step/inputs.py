"""Builds the tensors of a step, a ForwardBatch, from its scheduled rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Protocol

import numpy as np

from blora.adapters.lora import LoRAMetadata, LoRAPlanner, Segment, Send, on_host
from blora.scheduler import AdapterUse, ScheduledRow

from ..attention.base import AttentionPlanner, PagedRows
from ..model.batch import ForwardBatch

MAX_SCORED_ROWS = 256  # tokens whose prompt logprobs are projected at a time: each row of logits is vocab_size wide


class BatchRow(Protocol):
    """The facts about a row from which a step's tensors are built: a ScheduledRow, or the ShardRow of a shard."""

    @property
    def new_token_ids(self) -> Sequence[int]: ...
    @property
    def num_new_tokens(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def block_table(self) -> Sequence[int]: ...
    @property
    def adapters(self) -> tuple[AdapterUse, ...]: ...
    @property
    def num_base_tokens(self) -> int: ...
    @property
    def is_sampled(self) -> bool: ...
    @property
    def num_scored_tokens(self) -> int: ...


def in_batch_order(rows: Sequence[ScheduledRow]) -> list[ScheduledRow]:
    """Returns the rows sorted by their adapters, so that equal lists of adapters form one segment; base rows first."""
    return sorted(rows, key=lambda row: row.adapters)


def build_batch(
    rows: Sequence[BatchRow],
    adapter_pages: Mapping[str, Sequence[int]],
    attention: AttentionPlanner,
    lora: LoRAPlanner,
    send: Send = on_host,
) -> ForwardBatch:
    """rows: in batch order. adapter_pages: digest -> arena pages, for every adapter that the rows use. send: copies
    integers to the model's device."""
    token_ids: list[int] = []
    positions: list[int] = []
    logits_at: list[int] = []
    for row in rows:
        token_ids += row.new_token_ids
        positions += range(row.start, row.end)
        if row.is_sampled:
            logits_at.append(len(token_ids) - 1)
    segments = segments_of(rows)
    sampled = [(row.adapters, 1) for row in rows if row.is_sampled] if segments else []
    on_device = send(*(np.array(part, dtype=np.int64) for part in (token_ids, positions, logits_at)))
    return ForwardBatch(
        token_ids=on_device[0],
        positions=on_device[1],
        logits_at=on_device[2],
        attention=attention.plan(_paged_rows(rows)),
        lora=lora.plan(segments, adapter_pages) if segments else None,
        logits_lora=plan_logits(sampled, adapter_pages, lora),
    )


def segments_of(rows: Sequence[BatchRow]) -> list[Segment]:
    """Returns the runs of tokens with the same adapters. rows: in batch order, so the last row has adapters if any row
    has."""
    return _segments_of(_runs(rows)) if rows[-1].adapters else []


def plan_logits(
    runs: Iterable[tuple[tuple[AdapterUse, ...], int]], adapter_pages: Mapping[str, Sequence[int]], lora: LoRAPlanner
) -> LoRAMetadata | None:
    """Returns the LoRA metadata of rows projected to logits, or None if no adapter changes the head. runs: adapters and
    number of rows."""
    segments = [
        segment for segment in _segments_of(runs) if any(lora.changes_head(digest) for digest, _ in segment.adapters)
    ]
    return lora.plan(segments, adapter_pages) if segments else None


def scored_slices(rows: Sequence[BatchRow]) -> Iterator[tuple[int, slice]]:
    """Yields the hidden states to project for prompt logprobs: the row's index, and a slice of the step's tokens."""
    first = 0
    for index, row in enumerate(rows):
        for start in range(0, row.num_scored_tokens, MAX_SCORED_ROWS):
            yield index, slice(first + start, first + min(start + MAX_SCORED_ROWS, row.num_scored_tokens))
        first += row.num_new_tokens


def _paged_rows(rows: Sequence[BatchRow]) -> PagedRows:
    return PagedRows(
        query_lens=[row.num_new_tokens for row in rows],
        seq_lens=[row.end for row in rows],
        block_tables=[row.block_table for row in rows],
    )


def _segments_of(runs: Iterable[tuple[tuple[AdapterUse, ...], int]]) -> list[Segment]:
    segments, start = [], 0
    for adapters, group in groupby(runs, key=itemgetter(0)):
        end = start + sum(num_tokens for _, num_tokens in group)
        if adapters:
            segments.append(Segment(start, end, adapters))
        start = end
    return segments


def _runs(rows: Sequence[BatchRow]) -> Iterator[tuple[tuple[AdapterUse, ...], int]]:
    """Yields the adapters in force and the number of tokens. A row whose adapters are activated in this step gives two
    runs."""
    for row in rows:
        num_base_tokens = row.num_base_tokens
        if num_base_tokens:
            yield (), num_base_tokens
        if num_base_tokens < row.num_new_tokens:
            yield row.adapters, row.num_new_tokens - num_base_tokens
