"""Page size: how many bytes a page of the arena has, from a model's shape. Plain ints; needs no torch, no engine."""

from blora.adapters import Layout

from ..model_files.config import ModelConfig

ALIGNMENT = 64  # bytes; a cache line, and the widest vector load
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}


def kv_layer_bytes(num_kv_heads: int, block_size: int, head_dim: int, item_bytes: int) -> int:
    """Returns the bytes of K and V of one layer for `block_size` tokens."""
    return 2 * num_kv_heads * block_size * head_dim * item_bytes


def page_bytes_for(block_bytes: int, largest_piece: int) -> int:
    """Returns the bytes of a page: a KV block, or the largest piece of an adapter where that is larger (tiny models).
    Both arguments are bytes."""
    return -(-max(block_bytes, largest_piece) // ALIGNMENT) * ALIGNMENT


def max_elements(num_pages: int, page_bytes: int, dtype: str) -> int:
    """Returns how many elements of adapters the arena could hold with nothing else in it."""
    return num_pages * page_bytes // ITEM_BYTES[dtype]


def page_bytes_of(config: ModelConfig, dtype: str, block_size: int, layout: Layout = Layout.CPU) -> int:
    """Returns the bytes of a page in an engine of this model. dtype: data type of KV. block_size: tokens. layout: how
    adapters lie in a page."""
    layer_bytes = kv_layer_bytes(config.num_kv_heads, block_size, config.head_dim, ITEM_BYTES[dtype])
    return page_bytes_for(config.num_layers * layer_bytes, layout.largest_piece(ITEM_BYTES["float32"]))
