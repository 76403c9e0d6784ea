"""StepTable: a step's segments cut into strips, as the kernels read them. All layers share one table.

A strip is some rows of one segment; a use is one adapter of a strip. Only rows with adapters are in strips, and only
adapters of the step are in uses, so the kernels have no other work.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..lora import Segment
from ..lora_module import Array
from .sites import Site

HEADER_FIELDS, USE_FIELDS, STRIP_FIELDS = 4, 5, 4
LONG_ROWS = 64  # rows of a strip if a segment has at least as many
MEDIUM_ROWS = 16  # the fewest rows that tensor cores multiply
MANY_PROGRAMS = 256  # programs of shrink that fill a GPU without splitting the inputs
ROWS_PER_SEGMENT = 2  # up to this average, rows are multiplied one by one, and each reads the weights again


@dataclass(frozen=True, slots=True)
class StepSize:
    """The size of a step, or of the largest step that fits some buffers."""

    block_rows: int  # the most rows of a strip
    num_uses: int
    num_strips: int
    num_rows: int  # rows of h: those of all uses together
    num_groups: int  # groups of ranks of the adapter with most

    @property
    def parts(self) -> tuple[int, int, int]:
        """The elements of the header, of the uses and of the strips."""
        return HEADER_FIELDS, self.num_uses * USE_FIELDS, self.num_strips * STRIP_FIELDS

    def num_planes(self, site: Site) -> int:
        """The number of splits if each gets a program of its own, else 1. No bit of a result depends on it."""
        return 1 if self.num_uses * site.num_modules >= MANY_PROGRAMS else site.num_splits


@dataclass(frozen=True, slots=True)
class StepTable:
    size: StepSize
    content: Array  # [4 + num_uses * 5 + num_strips * 4] int64: header, uses, strips; see kernels.py


def choose_block_rows(segments: Sequence[Segment]) -> int:
    """The most rows of a strip."""
    lengths = [segment.end - segment.start for segment in segments]
    if sum(lengths) <= ROWS_PER_SEGMENT * len(lengths):
        return 1
    return LONG_ROWS if max(lengths) >= LONG_ROWS else MEDIUM_ROWS


def possible_block_rows(num_rows: int) -> list[int]:
    """The values that `choose_block_rows` may return for segments of up to `num_rows` rows together."""
    fewest = {1: 1, MEDIUM_ROWS: ROWS_PER_SEGMENT + 1, LONG_ROWS: LONG_ROWS}
    return [block_rows for block_rows, fewest_rows in fewest.items() if num_rows >= fewest_rows]


def make_step_table(
    segments: Sequence[Segment], addresses: Mapping[str, int], num_groups: int, block_rows: int
) -> StepTable:
    """Makes the table of a step. addresses: digest -> address of the adapter's table on the device."""
    uses: list[tuple[int, ...]] = []
    strips: list[tuple[int, ...]] = []
    row = 0  # of h
    for start, num_rows, adapters in _cut(segments, block_rows):
        strips.append((start, num_rows, len(uses), len(adapters)))
        for digest, scale in adapters:
            uses.append((addresses[digest], int(np.float32(scale).view(np.int32)), row, start, num_rows))
            row += num_rows
    header = (len(uses), len(strips), row, num_groups)
    content = np.concatenate([np.array(part, np.int64).reshape(-1) for part in (header, uses, strips)])
    return StepTable(StepSize(block_rows, len(uses), len(strips), row, num_groups), content)


def _cut(segments: Sequence[Segment], block_rows: int) -> Iterator[tuple[int, int, tuple[tuple[str, float], ...]]]:
    """Yields the first row, the number of rows and the adapters of each strip."""
    for segment in segments:
        for start in range(segment.start, segment.end, block_rows):
            yield start, min(block_rows, segment.end - start), segment.adapters
