"""ReferenceAttention: paged attention in plain torch, row by row. Tests compare every faster backend with it.

Inside a layer's slab, K and V are stored as [2, num_kv_heads, block_size, head_dim]. Scores and sums are float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..memory.arena import Arena
from .base import AttentionBackend, AttentionMetadata, PagedRows

MAX_QUERIES = 256  # computed at once: the scores of a long prompt take at most num_heads * 256 * seq_len floats


@dataclass(frozen=True, slots=True)
class KVSlots:
    """The places of tokens in the arena."""

    pages: Tensor  # [num_tokens] int64
    offsets: Tensor  # [num_tokens] int64, inside the page

    def __getitem__(self, tokens: slice) -> "KVSlots":
        return KVSlots(self.pages[tokens], self.offsets[tokens])


@dataclass(frozen=True, slots=True)
class QueryRun:
    """Neighbouring queries of one row, and the tokens that they see together."""

    start: int  # first token in the batch
    end: int  # one past the last
    context: KVSlots  # of the sequence's tokens, from the first to the last query's
    mask: Tensor | None  # [num_queries, context] True where a query sees a token; None: the one query sees every token


@dataclass(frozen=True, slots=True)
class ReferenceMetadata(AttentionMetadata):
    new: KVSlots  # of the step's tokens, in batch order
    runs: tuple[QueryRun, ...]


class ReferenceAttention(AttentionBackend):
    def __init__(self, arena: Arena, num_heads: int, scale: float) -> None:
        """scale: the factor of the scores, usually head_dim ** -0.5."""
        layout = arena.layout
        self._block_size = layout.block_size
        self._num_heads = num_heads
        self._scale = scale
        # [num_layers] of [num_pages, 2, num_kv_heads, block_size, head_dim]
        self._layers = [arena.kv_layer(layer) for layer in range(layout.num_layers)]

    def plan(self, rows: PagedRows) -> ReferenceMetadata:
        slots = [self._slots(table, seq_len) for table, seq_len in zip(rows.block_tables, rows.seq_lens, strict=True)]
        new = [row[len(row.pages) - query_len :] for row, query_len in zip(slots, rows.query_lens, strict=True)]
        return ReferenceMetadata(
            new=KVSlots(torch.cat([row.pages for row in new]), torch.cat([row.offsets for row in new])),
            runs=tuple(_query_runs(rows, slots)),
        )

    def _slots(self, block_table: object, seq_len: int) -> KVSlots:
        positions = torch.arange(seq_len)
        return KVSlots(torch.tensor(block_table)[positions // self._block_size], positions % self._block_size)

    def run(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, window: int | None
    ) -> Tensor:
        if not isinstance(metadata, ReferenceMetadata):
            raise TypeError(f"metadata of another backend: {type(metadata).__name__}")
        kv = self._layers[layer]
        kv[metadata.new.pages, 0, :, metadata.new.offsets] = k
        kv[metadata.new.pages, 1, :, metadata.new.offsets] = v
        y = q.new_empty(len(q), self._num_heads * q.shape[-1])
        for part in metadata.runs:
            y[part.start : part.end] = self._attend(q[part.start : part.end], kv, part, window)
        return y

    def _attend(self, q: Tensor, kv: Tensor, part: QueryRun, window: int | None) -> Tensor:
        """q: [num_queries, num_heads, head_dim]. Returns [num_queries, num_heads * head_dim] float32."""
        context, mask = _within(part, window)
        keys, values = kv[context.pages, :, :, context.offsets].float().unbind(1)  # [context, num_kv_heads, head_dim]
        num_queries, num_heads, head_dim = q.shape
        num_kv_heads = keys.shape[1]
        group = num_heads // num_kv_heads  # query heads that share a key-value head
        # [num_kv_heads, group * num_queries, head_dim], so that keys and values are never repeated
        grouped = q.float().view(num_queries, num_kv_heads, group, head_dim).permute(1, 2, 0, 3).flatten(1, 2)
        scores = grouped @ keys.permute(1, 2, 0) * self._scale  # [num_kv_heads, group * num_queries, context]
        if mask is not None:
            scores.view(num_kv_heads, group, num_queries, -1).masked_fill_(~mask, -torch.inf)
        weights = scores.softmax(-1)
        y: Tensor = weights @ values.transpose(0, 1)  # [num_kv_heads, group * num_queries, head_dim]
        if mask is not None and not values.isfinite().all():
            y = _weigh_seen(weights.view(num_kv_heads, group, num_queries, -1), mask, values).view_as(y)
        return y.view(num_kv_heads, group, num_queries, head_dim).permute(2, 0, 1, 3).flatten(1)


def _weigh_seen(weights: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """The product, query by query, over the tokens that each sees: a weight of 0 does not remove a value like NaN.

    weights: [num_kv_heads, group, num_queries, context].
    mask: [num_queries, context].
    values: [context, num_kv_heads, head_dim].
    Returns [num_kv_heads, group, num_queries, head_dim].
    """
    per_head = values.transpose(0, 1)[:, None]  # [num_kv_heads, 1, context, head_dim]
    products = [
        weights[:, :, query, is_seen][:, :, None] @ per_head[:, :, is_seen] for query, is_seen in enumerate(mask)
    ]
    return torch.cat(products, dim=2)


def _query_runs(rows: PagedRows, slots: list[KVSlots]) -> Iterator[QueryRun]:
    start = 0
    for row, query_len, seq_len in zip(slots, rows.query_lens, rows.seq_lens, strict=True):
        for first in range(0, query_len, MAX_QUERIES):
            num_queries = min(MAX_QUERIES, query_len - first)
            context = seq_len - query_len + first + num_queries
            yield QueryRun(start, start + num_queries, row[:context], _causal_mask(num_queries, context))
            start += num_queries


def _causal_mask(num_queries: int, context: int) -> Tensor | None:
    """The last query sees the whole context, the one before it one token less, and so on."""
    if num_queries == 1:
        return None
    return torch.ones(num_queries, context, dtype=torch.bool).tril(context - num_queries)


def _within(part: QueryRun, window: int | None) -> tuple[KVSlots, Tensor | None]:
    """The context without the tokens before the first query's window, and the mask of the rest."""
    context = len(part.context.pages)
    num_queries = part.end - part.start
    if window is None or context <= window:
        return part.context, part.mask
    first = max(context - num_queries - window + 1, 0)
    if part.mask is None:
        return part.context[first:], None
    is_near = torch.ones(num_queries, context, dtype=torch.bool).triu(context - num_queries - window + 1)
    return part.context[first:], (part.mask & is_near)[:, first:]
