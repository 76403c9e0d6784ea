"""CpuAttention: paged attention by the native kernel, which also norms and rotates q and k and writes the KV.

The class holds the description of each layer that the kernel reads. The order of K and V in a block belongs to the
kernel (`engine/kernels/attention.cpp`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from ..kernels.library import (
    DTYPES,
    MAX_GROUP,
    MAX_HEAD_DIM,
    PANEL,
    AttentionLayer,
    AttentionPlan,
    Kernels,
)
from ..kernels.library import check_shape as check_tensor
from ..memory.arena import Arena, KVLayout
from ..model_files.config import ModelConfig
from .base import AttentionMetadata, AttentionPlanner, Bounds, PagedRows

MAX_WINDOW = 2**31 - 1


@dataclass(frozen=True, slots=True)
class CpuAttentionMetadata(AttentionMetadata):
    plan: AttentionPlan
    arrays: Sequence[object]  # kept alive: the plan points to them


class CpuAttention(AttentionPlanner):
    def __init__(
        self,
        kernels: Kernels,
        arena: Arena,
        config: ModelConfig,
        cos: Tensor,
        sin: Tensor,
        qk_norms: Sequence[Tensor],
        soft_cap: float | None = None,
    ) -> None:
        """Raises ValueError for a model or an arena that the kernel cannot compute with.

        cos, sin: [max_positions, head_dim // 2] float32.
        qk_norms: [num_heads + num_kv_heads, head_dim] of each layer; empty: the model has none.
        soft_cap: scores become soft_cap * tanh(score / soft_cap); None: they stay.
        """
        check_shape(config, arena.layout.block_size)
        _check_fit(arena.layout, config, cos, sin, qk_norms)
        self._kernels = kernels
        self._arena = arena
        self._kept = (cos, sin, qk_norms)
        self._bounds = Bounds(arena.num_pages, arena.layout.block_size, len(cos))
        self.layers = [
            AttentionLayer(
                pages=arena.pages.data_ptr(),
                page_bytes=arena.page_bytes,
                offset=layer * arena.layout.layer_bytes,
                cos=cos.data_ptr(),
                sin=sin.data_ptr(),
                qk_norm=qk_norms[layer].data_ptr() if qk_norms else None,
                eps=config.rms_norm_eps,
                scale=config.head_dim**-0.5,
                softcap=soft_cap or 0.0,
                window=config.sliding_windows[layer] or 0,
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                block_size=arena.layout.block_size,
                dtype=DTYPES[arena.layout.dtype],
            )
            for layer in range(config.num_layers)
        ]

    def plan(self, rows: PagedRows) -> CpuAttentionMetadata:
        """Raises ValueError for rows that reach beyond their block tables, the arena or the rope table."""
        starts = np.array([0, *accumulate(rows.query_lens)], dtype=np.int32)
        seq_lens = np.array(rows.seq_lens, dtype=np.int32)
        tables = np.fromiter(chain.from_iterable(rows.block_tables), dtype=np.int32)
        table_at = np.array([0, *accumulate(map(len, rows.block_tables))], dtype=np.int32)
        self._bounds.check(np.diff(starts), seq_lens, tables, np.diff(table_at))
        arrays = (starts, seq_lens, tables, table_at)
        plan = AttentionPlan(len(seq_lens), int(starts[-1]), *(array.ctypes.data for array in arrays))
        return CpuAttentionMetadata(plan, arrays)

    def run(self, layer: int, qkv: Tensor, y: Tensor, metadata: AttentionMetadata) -> None:
        """Computes the attention of one layer from the projection's q, k and v. Shapes: see Kernels.attention."""
        if not isinstance(metadata, CpuAttentionMetadata):
            raise TypeError(f"metadata of another backend: {type(metadata).__name__}")
        if layer < 0:
            raise IndexError(f"layer {layer} does not exist")
        self._kernels.attention(self.layers[layer], metadata.plan, qkv, y)

    def run_normed(self, layer: int, qkv: Tensor, y: Tensor, metadata: CpuAttentionMetadata) -> None:
        """Computes as `run` does, from q and k whose heads are normed already."""
        without_norm = AttentionLayer.from_buffer_copy(self.layers[layer])
        without_norm.qk_norm = None
        self._kernels.attention(without_norm, metadata.plan, qkv, y)


def check_shape(config: ModelConfig, block_size: int) -> None:
    """Raises ValueError for a model or a block size that the kernel has no code for."""
    if block_size < 1 or (block_size > PANEL and block_size % PANEL):
        raise ValueError(f"block_size: {block_size} is neither from 1 to {PANEL} nor a multiple of {PANEL}")
    if config.num_kv_heads < 1 or config.num_heads < 1 or config.num_heads % config.num_kv_heads:
        raise ValueError(f"{config.num_heads} query heads do not share {config.num_kv_heads} KV heads evenly")
    if config.num_heads // config.num_kv_heads > MAX_GROUP:
        raise ValueError(f"num_kv_heads: more than {MAX_GROUP} query heads would share a KV head")
    if not 2 <= config.head_dim <= MAX_HEAD_DIM or config.head_dim % 2:
        raise ValueError(f"head_dim: {config.head_dim} is not an even number from 2 to {MAX_HEAD_DIM}")
    if not all(window is None or 0 < window <= MAX_WINDOW for window in config.sliding_windows):
        raise ValueError(f"sliding_windows: {config.sliding_windows} are not all from 1 to {MAX_WINDOW}")


def _check_fit(layout: KVLayout, config: ModelConfig, cos: Tensor, sin: Tensor, qk_norms: Sequence[Tensor]) -> None:
    """Raises ValueError for an arena, a rope table or norms of another model."""
    heads = (config.num_layers, config.num_kv_heads, config.head_dim)
    if (layout.num_layers, layout.num_kv_heads, layout.head_dim) != heads:
        raise ValueError(f"the arena is laid out for other layers, KV heads or head_dim than the model's {heads}")
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table, torch.float32, (len(cos), config.head_dim // 2))
    if qk_norms and len(qk_norms) != config.num_layers:
        raise ValueError(f"qk_norms: {len(qk_norms)} for {config.num_layers} layers")
    for norm in qk_norms:
        check_tensor("qk_norms", norm, layout.dtype, (config.num_heads + config.num_kv_heads, config.head_dim))
