"""Qwen3's config.json: a norm on each head of q and k, heads of 128 unless told, windows in some layers."""

from .config import ModelConfig
from .hf_fields import Fields, build_config, windows_by_layer

DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def qwen3_config(fields: Fields) -> ModelConfig:
    fields = {**DEFAULTS, **fields}
    has_bias = bool(fields.get("attention_bias", False))
    windows = windows_by_layer(fields)
    return build_config(fields, sliding_windows=windows, qkv_bias=has_bias, o_bias=has_bias, qk_norm=True)
