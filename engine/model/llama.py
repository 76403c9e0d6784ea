"""Llama's config.json. `attention_bias` is of all four attention projections, `mlp_bias` of all three of the MLP."""

from .config import ModelConfig
from .hf_fields import Fields, build_config, size

DEFAULTS = {"max_position_embeddings": 2048}


def llama_config(fields: Fields) -> ModelConfig:
    has_attention_bias = bool(fields.get("attention_bias", False))
    return build_config(
        {**DEFAULTS, **fields},
        sliding_windows=(None,) * size(fields, "num_hidden_layers"),
        qkv_bias=has_attention_bias,
        o_bias=has_attention_bias,
        mlp_bias=bool(fields.get("mlp_bias", False)),
    )
