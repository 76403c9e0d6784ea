"""Shared prefixes found in block tables: they are whole and disjoint, and save as much as one cut per family can."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blora.engine.attention.shared_prefix import find_shared_prefixes

Tables = Sequence[Sequence[int]]


def find(tables: Tables, least_saved: int = 1) -> list[tuple[list[int], int]]:
    lengths = [len(table) for table in tables]
    indptr = np.array([0, *np.cumsum(lengths)], dtype=np.int32)
    indices = np.array([page for table in tables for page in table], dtype=np.int32)
    found = find_shared_prefixes(indptr, indices, least_saved)
    return sorted((sorted(prefix.rows), prefix.num_pages) for prefix in found)


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ([[1, 2, 3]], []),
        ([[1, 2, 3], [4, 5, 6]], []),
        ([[1, 2, 3], [1, 2, 4]], [([0, 1], 2)]),
        ([[1, 2, 3], [1, 2]], [([0, 1], 1)]),  # the last page of the second row is still written
        ([[1], [1, 2]], []),
        ([[1, 2, 3, 4], [9, 1, 2, 3], [1, 2, 3, 5]], [([0, 2], 3)]),
        ([[7, 8, 1], [1, 2, 3], [7, 8, 4], [1, 2, 5]], [([0, 2], 2), ([1, 3], 2)]),
        # All rows share one page, some share four: the cut is where it saves more.
        ([[1, 2, 3, 4, 9], [1, 2, 3, 4, 8], [1, 7, 7], [1, 2, 3, 4, 6]], [([0, 1, 3], 4)]),
        ([[1, 2, 9], [1, 3, 8], [1, 4, 7], [1, 2, 6]], [([0, 1, 2, 3], 1)]),
        ([[1, 2, 3, 9], [1, 2, 3, 8], [1, 5, 6, 7], [1, 5, 6, 4]], [([0, 1], 3), ([2, 3], 3)]),
    ],
)
def test_found(tables: Tables, expected: list[tuple[list[int], int]]) -> None:
    assert find(tables) == expected


def test_only_where_enough_is_saved() -> None:
    tables = [[1, 2, 3, 9], [1, 2, 3, 8], [1, 2, 3, 7]]
    assert find(tables, 6) and not find(tables, 7)


# There are few pages, so that many are shared.
TABLES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12)


def common(tables: Tables) -> int:
    """The number of pages that all rows begin with, the last page of each left out."""
    columns = zip(*(table[:-1] for table in tables), strict=False)
    return next((place for place, column in enumerate(columns) if len(set(column)) > 1), min(map(len, tables)) - 1)


def best_saving(tables: Tables) -> int:
    """The most pages that can be saved, found by trying every depth for each first page."""
    saved = 0
    for first in {table[0] for table in tables}:
        family = [tuple(table[:-1]) for table in tables if table[0] == first and len(table) > 1]
        depths = range(1, max(map(len, family), default=0) + 1)
        long = {depth: [table[:depth] for table in family if len(table) >= depth] for depth in depths}
        saved += max((depth * (len(tables) - len(set(tables))) for depth, tables in long.items()), default=0)
    return saved


@given(TABLES, st.integers(1, 20))
def test_whole_disjoint_and_best(tables: Tables, least_saved: int) -> None:
    found = find(tables, least_saved)
    rows = [row for prefix, _ in found for row in prefix]
    assert len(rows) == len(set(rows))
    for prefix, num_pages in found:
        assert len(prefix) >= 2 and 1 <= num_pages <= common([tables[row] for row in prefix])
    saved = sum((len(prefix) - 1) * num_pages for prefix, num_pages in found)
    best = best_saving(tables)
    assert saved == (best if best >= least_saved else 0)
