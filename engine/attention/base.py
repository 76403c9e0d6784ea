"""The attention interface: one plan per step, then one run per layer.

A backend owns the order of K and V inside a layer's slab of an arena page. It knows pages and lengths, but no request.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class PagedRows:
    """The rows of one step, as integers on the host. In the order of the batch, row i has query_lens[i] tokens."""

    query_lens: Sequence[int]  # [num_rows] tokens computed in this step, at least 1
    seq_lens: Sequence[int]  # [num_rows] length of the sequence after the step, at least query_lens[i]
    block_tables: Sequence[Sequence[int]]  # [num_rows][at least ceil(seq_len / block_size)] arena pages


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of any step's rows: within them no kernel reads or writes outside its memory."""

    num_pages: int  # pages of the arena
    block_size: int  # tokens
    max_positions: int  # positions in the rope table

    def check(self, query_lens: Array, seq_lens: Array, tables: Array, table_lens: Array) -> None:
        """Raises ValueError for rows that reach beyond their block tables, the arena or the rope table.

        query_lens, seq_lens, table_lens: [num_rows].
        tables: the block tables of all rows, one after another.
        """
        if not len(query_lens) == len(seq_lens) == len(table_lens):
            raise ValueError(
                f"rows: {len(query_lens)} query_lens, {len(seq_lens)} seq_lens, {len(table_lens)} block_tables"
            )
        is_whole = (query_lens >= 1) & (seq_lens >= query_lens) & (seq_lens <= self.max_positions)
        is_held = seq_lens <= table_lens.astype(np.int64) * self.block_size
        if not (is_whole & is_held).all():
            raise ValueError(
                f"rows: {query_lens} queries of sequences of {seq_lens} tokens do not fit {table_lens} blocks of"
                f" {self.block_size} tokens and {self.max_positions} positions"
            )
        if ((tables < 0) | (tables >= self.num_pages)).any():
            raise ValueError(f"block_tables: a page lies outside the arena of {self.num_pages} pages")


class AttentionMetadata:
    """The result of `plan` for one step. Its content is the backend's own."""


class AttentionPlanner(ABC):
    """The part of the interface that every step needs. A backend without `run` is called by a model of its own."""

    @abstractmethod
    def plan(self, rows: PagedRows) -> AttentionMetadata: ...


class AttentionBackend(AttentionPlanner):
    @abstractmethod
    def run(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, window: int | None
    ) -> Tensor:
        """Writes k and v of the step's tokens into their pages, then attends causally over each row's sequence.

        q: [num_tokens, num_heads, head_dim], rotated.
        k, v: [num_tokens, num_kv_heads, head_dim], k rotated.
        window: a token sees itself and the window - 1 tokens before it; None: all tokens before it.
        Returns [num_tokens, num_heads * head_dim] in q's dtype. Nothing beyond a row's written length is ever read.
        """
