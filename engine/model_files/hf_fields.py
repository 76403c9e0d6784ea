"""The rules of a Hugging Face config.json that all architectures share: sizes, windows, and values that are refused.

The module knows fields, but no tensor. The rules of single architectures are in `architectures.py`.
"""

from collections.abc import Mapping
from typing import Any

from .config import ModelConfig, UnsupportedModel, check_bounded, unsupported
from .hf_rope import extended_length, rope_config

Fields = Mapping[str, Any]
SIZES = {  # names of fields that ModelConfig has under other names
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
}
DTYPES = ("float32", "bfloat16", "float16")


def build_config(
    fields: Fields,
    *,
    sliding_windows: tuple[int | None, ...],
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> ModelConfig:
    """Builds the config. fields: those of config.json over the architecture's defaults."""
    check_supported(fields)
    hidden_size, num_heads = size(fields, "hidden_size"), size(fields, "num_attention_heads")
    config = ModelConfig(
        architecture=fields["architectures"][0],
        vocab_size=size(fields, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=size(fields, "intermediate_size"),
        num_layers=size(fields, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=size(fields, "num_key_value_heads", num_heads),
        head_dim=size(fields, "head_dim", hidden_size // num_heads),
        rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        rope=rope_config(fields),
        max_position_embeddings=extended_length(fields),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        sliding_windows=sliding_windows,
        tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
        dtype=str(fields["dtype"]).removeprefix("torch."),
    )
    check_consistent(config)
    return config


def check_supported(fields: Fields) -> None:
    activation = fields.get("hidden_act", "silu")
    if activation != "silu":
        raise unsupported("hidden_act", activation, "silu")
    if fields.get("quantization_config"):
        method = fields["quantization_config"].get("quant_method")
        raise unsupported("quantization_config", method, "weights that are not quantised, and GGUF files")
    if fields.get("partial_rotary_factor") not in (None, 1):
        raise unsupported("partial_rotary_factor", fields["partial_rotary_factor"], "1.0")


def check_consistent(config: ModelConfig) -> None:
    check_bounded("max_position_embeddings", "max_position_embeddings", config.max_position_embeddings)
    if config.num_heads % config.num_kv_heads:
        raise UnsupportedModel(f"{config.num_heads} heads cannot share {config.num_kv_heads} key-value heads evenly")
    if config.head_dim % 2:
        raise unsupported("head_dim", config.head_dim, "even numbers")
    if config.dtype not in DTYPES:
        raise unsupported("dtype", config.dtype, ", ".join(DTYPES))


def size(fields: Fields, name: str, default: int | None = None) -> int:
    """The value of a field, a positive integer. Null and an absent field mean the default."""
    value = fields.get(name)
    return check_bounded(name, SIZES.get(name, name), default if value is None else value)


def windows_by_layer(fields: Fields) -> tuple[int | None, ...]:
    """The windows by Qwen's rules: `layer_types` names the layers that slide; without it, all layers from
    `max_window_layers` on do. A window counts only with `use_sliding_window`."""
    num_layers = size(fields, "num_hidden_layers")
    window = fields.get("sliding_window") if fields.get("use_sliding_window", False) else None
    if fields.get("layer_types") is not None:
        return tuple(_window(kind, window) for kind in _checked(fields["layer_types"], num_layers))
    return tuple(window if layer >= fields["max_window_layers"] else None for layer in range(num_layers))


def _checked(layer_types: list[str], num_layers: int) -> list[str]:
    if len(layer_types) != num_layers:
        raise UnsupportedModel(f"layer_types names {len(layer_types)} layers, num_hidden_layers {num_layers}")
    return layer_types


def _window(kind: str, window: int | None) -> int | None:
    if kind == "full_attention":
        return None
    if kind != "sliding_attention":
        raise unsupported("layer_types", kind, "full_attention, sliding_attention")
    if window is None:
        raise UnsupportedModel("layer_types names sliding_attention, but no sliding_window is in use")
    return window
