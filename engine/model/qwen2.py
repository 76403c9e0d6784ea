"""Qwen2's and Qwen2.5's config.json: Llama with biases on q, k and v, always, and windows in some layers."""

from .config import ModelConfig
from .hf_fields import Fields, build_config, windows_by_layer

DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def qwen2_config(fields: Fields) -> ModelConfig:
    fields = {**DEFAULTS, **fields}
    return build_config(fields, sliding_windows=windows_by_layer(fields), qkv_bias=True)
