"""The attention interface: a plan once per step, then one run per layer.

A backend owns the order of K and V inside a layer's slab of an arena page. It knows pages and lengths, no request.
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
    """The rows of one step, as host integers. Row i owns the next query_lens[i] tokens of the batch, in order."""

    query_lens: Sequence[int]  # [num_rows] tokens computed in this step, at least 1
    seq_lens: Sequence[int]  # [num_rows] length of the sequence when the step is done, at least query_lens[i]
    block_tables: Sequence[Sequence[int]]  # [num_rows][at least ceil(seq_len / block_size)] arena pages


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the rows of any step keep to, so that no kernel reads or writes outside its memory."""

    num_pages: int  # of the arena
    block_size: int  # tokens
    max_positions: int  # of the rope table

    def check(self, query_lens: Array, seq_lens: Array, tables: Array, table_lens: Array) -> None:
        """Raises ValueError for rows that reach beyond their tables, the arena or the rope table.

        query_lens, seq_lens, table_lens: [num_rows]. tables: all rows' one after another.
        """
        if not len(query_lens) == len(seq_lens) == len(table_lens):
            raise ValueError(f"rows: {len(query_lens)}, {len(seq_lens)} and {len(table_lens)} of them")
        is_whole = (query_lens >= 1) & (seq_lens >= query_lens) & (seq_lens <= self.max_positions)
        is_held = seq_lens <= table_lens.astype(np.int64) * self.block_size
        if not (is_whole & is_held).all():
            raise ValueError(f"rows: {query_lens} queries of {seq_lens} tokens in {table_lens} blocks")
        if ((tables < 0) | (tables >= self.num_pages)).any():
            raise ValueError("block_tables: pages outside the arena")


class AttentionMetadata:
    """What `plan` prepared for one step; its content is the backend's own."""


class AttentionPlanner(ABC):
    """What a step needs of any backend; one that rotates q and k itself is called by its own model."""

    @abstractmethod
    def plan(self, rows: PagedRows) -> AttentionMetadata: ...


class AttentionBackend(AttentionPlanner):
    @abstractmethod
    def run(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, window: int | None
    ) -> Tensor:
        """Writes k and v of the step's tokens into their pages, then attends causally over each row's sequence.

        q: [num_tokens, num_heads, head_dim], k and v: [num_tokens, num_kv_heads, head_dim], rotated already.
        window: a token sees itself and the window - 1 tokens before it; None is unlimited.
        Returns [num_tokens, num_heads * head_dim] in q's dtype. Nothing beyond a row's written length is ever read.
        """
