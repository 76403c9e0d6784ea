"""RowMasks: which tokens the rows of a step may draw, where structured output says what their texts have to match."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from blora.scheduler import ScheduledRow

from ..grammar.compiled import Matcher
from ..grammar.masks import Bits, allow, masks_of, take_ends


@dataclass(frozen=True, slots=True)
class RowMask:
    bits: Bits  # [width / 32] uint32, wider than the logits of any row
    may_end: bool  # whether the text matches as it is
    error: str | None  # what ends the request, or None


def row_masks(rows: Sequence[ScheduledRow]) -> Sequence[RowMask | None] | None:
    """Returns one mask for each row, None for a row that may draw any token; None if all may. On a GPU the host does
    this while the GPU computes the logits."""
    matchers = {index: cast(Matcher, row.matcher) for index, row in enumerate(rows) if row.matcher is not None}
    if not matchers:
        return None
    bits = masks_of(list(matchers.values()))
    may_end = take_ends(bits, next(iter(matchers.values())).vocabulary.end)
    masks: list[RowMask | None] = [None] * len(rows)
    for place, (index, matcher) in enumerate(matchers.items()):
        masks[index] = _row_mask(rows[index], matcher, bits[place], may_end[place])
    return masks


def _row_mask(row: ScheduledRow, matcher: Matcher, bits: Bits, may_end: bool) -> RowMask:
    """Tokens that end the answer may be drawn where the text may end, and min_tokens allows it."""
    if may_end and row.num_output_tokens >= row.sampling.min_tokens:
        allow(bits, row.ending_token_ids)
    allow(bits, matcher.spelled_tokens())
    return RowMask(bits, may_end, matcher.error)
