"""ForwardBatch: its tensors match the rows, and every list of adapters is one segment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blora.adapters.lora import LoRABackend, LoRAMetadata, Segment
from blora.engine.attention.base import AttentionBackend, AttentionMetadata, PagedRows
from blora.engine.model.batch import ForwardBatch
from blora.engine.step.inputs import build_batch, in_batch_order
from blora.scheduler import SamplingParams, ScheduledRow

Uses = tuple[tuple[str, float], ...]
X, Y, XY, X2 = (("x", 1.0),), (("y", 1.0),), (("x", 1.0), ("y", 1.0)), (("x", 2.0),)


@dataclass
class Planned(AttentionMetadata, LoRAMetadata):
    """Metadata that records the arguments of the planners."""

    rows: PagedRows | None = None
    segments: Sequence[Segment] = ()
    pages: Mapping[str, Sequence[int]] | None = None


class RecordingAttention(AttentionBackend):
    def plan(self, rows: PagedRows) -> AttentionMetadata:
        return Planned(rows=rows)

    def run(self, *_: Any) -> Tensor:
        raise AssertionError("planning computes nothing")


class RecordingLoRA(LoRABackend):
    def plan(self, segments: Sequence[Segment], adapter_pages: Mapping[str, Sequence[int]]) -> LoRAMetadata:
        return Planned(segments=segments, pages=adapter_pages)

    def changes_head(self, _: str) -> bool:
        return False

    def run(self, *_: Any) -> None:
        raise AssertionError("planning computes nothing")

    def embed(self, *_: Any) -> None:
        raise AssertionError("planning computes nothing")


def make_row(
    request_id: int, start: int, num_new: int, adapters: Uses = (), num_known: int | None = None, activation: int = 0
) -> ScheduledRow:
    num_known = start + num_new if num_known is None else num_known
    return ScheduledRow(
        request_id=request_id,
        start=start,
        num_new_tokens=num_new,
        token_ids=[100 * request_id + position for position in range(num_known)],
        num_prompt_tokens=1,
        block_table=[10 * request_id, 10 * request_id + 1],
        adapters=adapters,
        activation=activation,
        sampling=SamplingParams(),
        seed=0,
        sample_index=0,
        stop_token_ids=frozenset(),
    )


def build(rows: Sequence[ScheduledRow], pages: Mapping[str, Sequence[int]] | None = None) -> ForwardBatch:
    return build_batch(rows, pages or {}, RecordingAttention(), RecordingLoRA())


def planned(metadata: AttentionMetadata | LoRAMetadata | None) -> Planned:
    assert isinstance(metadata, Planned)
    return metadata


def test_tokens_and_positions_are_those_of_the_step() -> None:
    batch = build([make_row(1, 0, 3), make_row(2, 5, 1), make_row(3, 2, 2)])
    assert batch.token_ids.tolist() == [100, 101, 102, 205, 302, 303]
    assert batch.positions.tolist() == [0, 1, 2, 5, 2, 3]


def test_only_rows_at_their_last_token_are_sampled() -> None:
    batch = build([make_row(1, 0, 3), make_row(2, 0, 2, num_known=9), make_row(3, 4, 1)])
    assert batch.logits_at.tolist() == [2, 5]


def test_a_step_that_samples_nothing_has_no_logits() -> None:
    batch = build([make_row(1, 0, 2, num_known=9)])
    assert (batch.logits_at.tolist(), batch.logits_at.dtype) == ([], torch.int64)


def test_indices_are_64_bit() -> None:
    batch = build([make_row(1, 0, 3)])
    assert {batch.token_ids.dtype, batch.positions.dtype, batch.logits_at.dtype} == {torch.int64}


def test_attention_is_told_lengths_and_tables() -> None:
    rows = planned(build([make_row(1, 0, 3), make_row(2, 5, 1)]).attention).rows
    assert rows is not None
    assert (rows.query_lens, rows.seq_lens) == ([3, 1], [3, 6])
    assert rows.block_tables == [[10, 11], [20, 21]]


def test_a_step_of_base_rows_has_no_lora() -> None:
    assert build([make_row(1, 0, 3), make_row(2, 5, 1)]).lora is None


def test_segments_are_runs_of_one_list() -> None:
    rows = [make_row(1, 0, 3), make_row(2, 0, 2, X), make_row(3, 4, 1, X), make_row(4, 0, 4, Y)]
    lora = planned(build(rows, {"x": [1], "y": [2]}).lora)
    assert lora.segments == [Segment(3, 6, X), Segment(6, 10, Y)]
    assert lora.pages == {"x": [1], "y": [2]}


def test_another_scale_order_or_partner_is_another_segment() -> None:
    rows = [make_row(index, 0, 1, uses) for index, uses in enumerate([X, X2, XY, XY[::-1], Y])]
    assert [segment.adapters for segment in planned(build(rows).lora).segments] == [X, X2, XY, XY[::-1], Y]


def test_base_rows_come_first_and_equals_keep_their_order() -> None:
    rows = [make_row(1, 0, 1, Y), make_row(2, 0, 1), make_row(3, 0, 1, X), make_row(4, 0, 1, Y), make_row(5, 0, 1)]
    assert [row.request_id for row in in_batch_order(rows)] == [2, 5, 3, 1, 4]


def test_a_row_is_a_base_row_until_its_adapters_are_activated() -> None:
    whole, before, after = (make_row(index, 4, 4, X, activation=at) for index, at in enumerate([4, 8, 2]))
    across = make_row(3, 4, 4, X, activation=7)
    assert planned(build([whole, before, across, after]).lora).segments == [Segment(0, 4, X), Segment(11, 16, X)]
    assert build([before]).lora is None
    assert across.num_base_tokens == 3


@settings(max_examples=100, deadline=None)
@given(
    choices=st.lists(
        st.tuples(
            st.sampled_from([(), X, Y, XY, X2]), st.integers(0, 5), st.integers(1, 4), st.sampled_from([0, 0, 1, 3, 7])
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_token_lies_in_the_segment_of_the_adapters_in_force(choices: list[tuple[Uses, int, int, int]]) -> None:
    rows = in_batch_order(
        [make_row(index, start, new, uses, activation=at) for index, (uses, start, new, at) in enumerate(choices)]
    )
    batch = build(rows)
    segments = planned(batch.lora).segments if batch.lora is not None else []
    assert all(one.end < two.start or one.adapters != two.adapters for one, two in pairwise(segments))
    found: list[Uses] = [()] * len(batch.token_ids)
    for segment in segments:
        assert segment.adapters
        found[segment.start : segment.end] = [segment.adapters] * (segment.end - segment.start)
    positions = [(row, position) for row in rows for position in range(row.start, row.end)]
    assert found == [row.adapters if position >= row.activation else () for row, position in positions]


@pytest.mark.parametrize("num_rows", [1, 7])
def test_the_logits_rows_point_at_each_rows_last_token(num_rows: int) -> None:
    batch = build([make_row(index, 3, 2) for index in range(1, num_rows + 1)])
    last = batch.token_ids[batch.logits_at].tolist()
    assert last == [100 * index + 4 for index in range(1, num_rows + 1)]
