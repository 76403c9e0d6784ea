"""CpuAttention: paged attention by the native kernel, which also norms and rotates q and k and writes the KV.

Holds what the kernel needs to know of each layer. How K and V stand in a block is the kernel's own
(`engine/kernels/attention.cpp`).
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
    arrays: Sequence[object]  # what the plan points at, kept alive


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
        """cos, sin: [max_positions, head_dim // 2] float32. qk_norms: of each layer, or none. soft_cap: scores become
        soft_cap * tanh(score / soft_cap)."""
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
        """Raises ValueError for rows that reach beyond their tables, the arena or the rope table."""
        starts = np.array([0, *accumulate(rows.query_lens)], dtype=np.int32)
        seq_lens = np.array(rows.seq_lens, dtype=np.int32)
        tables = np.fromiter(chain.from_iterable(rows.block_tables), dtype=np.int32)
        table_at = np.array([0, *accumulate(map(len, rows.block_tables))], dtype=np.int32)
        self._bounds.check(np.diff(starts), seq_lens, tables, np.diff(table_at))
        arrays = (starts, seq_lens, tables, table_at)
        plan = AttentionPlan(len(seq_lens), int(starts[-1]), *(array.ctypes.data for array in arrays))
        return CpuAttentionMetadata(plan, arrays)

    def run(self, layer: int, qkv: Tensor, y: Tensor, metadata: AttentionMetadata) -> None:
        """Attends with q, k and v as the projection left them. Shapes: see Kernels.attention."""
        if not isinstance(metadata, CpuAttentionMetadata):
            raise TypeError(f"metadata of another backend: {type(metadata).__name__}")
        if layer < 0:
            raise IndexError(f"no layer {layer}")
        self._kernels.attention(self.layers[layer], metadata.plan, qkv, y)


def check_shape(config: ModelConfig, block_size: int) -> None:
    """Raises ValueError for what the kernel cannot do."""
    if block_size < 1 or (block_size > PANEL and block_size % PANEL):
        raise ValueError(f"block_size: {block_size} is more than {PANEL} and not a multiple of it, or nothing")
    if config.num_kv_heads < 1 or config.num_heads < 1 or config.num_heads % config.num_kv_heads:
        raise ValueError(f"{config.num_heads} query heads do not share {config.num_kv_heads} KV heads evenly")
    if config.num_heads // config.num_kv_heads > MAX_GROUP:
        raise ValueError(f"more than {MAX_GROUP} query heads share a KV head")
    if not 2 <= config.head_dim <= MAX_HEAD_DIM or config.head_dim % 2:
        raise ValueError(f"heads of {config.head_dim} are odd or larger than {MAX_HEAD_DIM}")
    if not all(window is None or 0 < window <= MAX_WINDOW for window in config.sliding_windows):
        raise ValueError(f"sliding_windows: not all are between 1 and {MAX_WINDOW}")


def _check_fit(layout: KVLayout, config: ModelConfig, cos: Tensor, sin: Tensor, qk_norms: Sequence[Tensor]) -> None:
    """Raises ValueError where the arena or the tables are for another model."""
    heads = (config.num_layers, config.num_kv_heads, config.head_dim)
    if (layout.num_layers, layout.num_kv_heads, layout.head_dim) != heads:
        raise ValueError(f"the arena is laid out for other layers or heads than {heads}")
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table, torch.float32, (len(cos), config.head_dim // 2))
    if qk_norms and len(qk_norms) != config.num_layers:
        raise ValueError(f"qk_norms: {len(qk_norms)} for {config.num_layers} layers")
    for norm in qk_norms:
        check_tensor("qk_norms", norm, layout.dtype, (config.num_heads + config.num_kv_heads, config.head_dim))
