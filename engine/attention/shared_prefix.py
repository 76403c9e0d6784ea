"""SharedPrefix: rows of a step whose sequences begin with the same KV blocks, found by their block tables.

Comparing pages is enough: a page never belongs to two adapters or two salts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .base import Array


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    rows: Sequence[int]  # two or more
    num_pages: int  # the pages that every row begins with


def find_shared_prefixes(indptr: Array, indices: Array, least_saved: int) -> list[SharedPrefix]:
    """Finds groups of rows that share a prefix. A row's last page, which holds its newest token, is never shared.

    indptr: [num_rows + 1] where each row's pages begin in indices.
    indices: the pages of all rows.
    least_saved: reading each prefix once has to save this many page reads; otherwise nothing is returned.
    """
    lengths = np.diff(indptr) - 1
    _, family, sizes = np.unique(indices[indptr[:-1]], return_inverse=True, return_counts=True)
    candidates = np.flatnonzero((sizes[family] > 1) & (lengths > 0))
    if lengths[candidates].sum() < least_saved or not len(candidates):
        return []
    tables = _padded(indptr[candidates], lengths[candidates], indices)
    order = sorted(range(len(tables)), key=[table.tobytes() for table in tables].__getitem__)
    tables = tables[order]
    is_same = (tables[1:] == tables[:-1]) & (tables[1:] >= 0)
    shared = np.logical_and.accumulate(is_same, axis=1).sum(1)  # [i] pages shared by rows i and i + 1 of the order
    found = [
        SharedPrefix([int(candidates[order[row]]) for row in range(first, last)], num_pages)
        for first, last, num_pages in _best_cuts(shared)
    ]
    saved = sum((len(prefix.rows) - 1) * prefix.num_pages for prefix in found)
    return found if saved >= least_saved else []


def _padded(starts: Array, lengths: Array, indices: Array) -> Array:
    """The rows as a matrix: [num_rows, longest], -1 beyond a row's end."""
    places = np.arange(lengths.max())
    tables = indices.take(starts[:, None] + places, mode="clip")
    return np.where(places < lengths[:, None], tables, np.int32(-1))


def _best_cuts(shared: Array) -> Iterator[tuple[int, int, int]]:
    """Yields (first row, last row, pages) of each group of ordered rows.

    Rows that share any page are cut at the one depth that saves most: a row that shares one page with many others does
    not keep these from sharing hundreds.
    """
    for first, last in _runs(shared > 0):
        depths, counts = np.unique(shared[first:last], return_counts=True)
        num_deeper = counts[::-1].cumsum()[::-1]
        depth = int(depths[(depths * num_deeper).argmax()])
        for start, end in _runs(shared[first:last] >= depth):
            yield first + start, first + end + 1, depth


def _runs(is_in: Array) -> list[tuple[int, int]]:
    """(first, last) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_in, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
