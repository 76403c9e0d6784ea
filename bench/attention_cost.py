"""Times of the paged attention kernel over scattered pages: decode at several contexts, and prefill of one prompt."""

import random

import torch

from blora.engine.attention.base import PagedRows
from blora.engine.attention.cpu import CpuAttention
from blora.engine.kernels.library import Kernels
from blora.engine.memory.arena import Arena, KVLayout
from blora.engine.memory.page_size import page_bytes_for
from blora.engine.model.rope import rope_cache
from blora.engine.model_files.config import ModelConfig

from .limits import median_seconds
from .shapes import with_layers

BLOCK_SIZE = 16  # tokens
WANTED_BYTES = 256 << 20  # KV of all layers: more than any cache holds, if the model has enough layers
MAX_LAYER_BYTES = 1 << 30
ITEM_BYTES = 2


class AttentionRows:
    """Rows of equal length, whose KV fills an arena of random values."""

    def __init__(self, kernels: Kernels, config: ModelConfig, rows: int, context: int) -> None:
        self._rows, self._context = rows, context
        num_layers = max(1, min(config.num_layers, WANTED_BYTES // layer_bytes(config, rows, context)))
        config = with_layers(config, num_layers)
        layout = KVLayout(num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, torch.bfloat16)
        blocks = -(-context // BLOCK_SIZE)
        self._arena = Arena(layout, rows * blocks, page_bytes_for(layout.block_bytes, 0))
        # The pages are written, because all untouched memory is one page of zeros, which stays in the cache.
        self._arena.pages[:] = torch.randn(self._arena.page_bytes // ITEM_BYTES).bfloat16().view(torch.uint8)
        cos, sin = rope_cache(config.rope, config.head_dim, context)
        self._attention = CpuAttention(kernels, self._arena, config, cos, sin, [])
        pages = random.Random(0).sample(range(rows * blocks), rows * blocks)
        self._tables = [pages[row * blocks : (row + 1) * blocks] for row in range(rows)]
        self._config = config

    def median_seconds(self, query_len: int, seconds: float) -> float:
        """Returns the time of one layer, for the last query_len tokens of every row."""
        config, num_tokens = self._config, self._rows * query_len
        plan = self._attention.plan(PagedRows([query_len] * self._rows, [self._context] * self._rows, self._tables))
        width = config.num_heads * config.head_dim
        qkv = torch.randn(num_tokens, width + 2 * config.num_kv_heads * config.head_dim).bfloat16()
        y = torch.empty(num_tokens, width, dtype=torch.bfloat16)

        def attend() -> None:
            for layer in range(config.num_layers):
                self._attention.run(layer, qkv, y, plan)

        return median_seconds(attend, seconds) / config.num_layers


def layer_bytes(config: ModelConfig, rows: int, context: int) -> int:
    """Returns the bytes of one layer's K and V."""
    return rows * context * 2 * config.num_kv_heads * config.head_dim * ITEM_BYTES


def attention_flops(config: ModelConfig, rows: int, query_len: int, context: int) -> int:
    """Returns the operations of one layer: two products with every key and value that the last query_len tokens see."""
    seen = query_len * (context - query_len) + query_len * (query_len + 1) // 2
    return 4 * config.num_heads * config.head_dim * rows * seen
