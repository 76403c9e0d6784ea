"""The supported architectures: for each Hugging Face class, a function that reads its config.json.

A new architecture is one more function and one more line of ARCHITECTURES. The values under `*_DEFAULTS` are those that
transformers uses for fields that a config.json lacks.
"""

from collections.abc import Callable

from .config import ModelConfig, UnsupportedModel, unsupported
from .hf_fields import Fields, build_config, size, windows_by_layer

LLAMA_DEFAULTS = {"max_position_embeddings": 2048}
# In transformers, an absent window means 4096, and null means no window.
MISTRAL_DEFAULTS = {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}
QWEN2_DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
QWEN3_DEFAULTS = {**QWEN2_DEFAULTS, "head_dim": 128}


def llama_config(fields: Fields) -> ModelConfig:
    """Llama: `attention_bias` counts for all four projections of attention, `mlp_bias` for all three of the MLP."""
    has_attention_bias = bool(fields.get("attention_bias", False))
    return build_config(
        {**LLAMA_DEFAULTS, **fields},
        sliding_windows=(None,) * size(fields, "num_hidden_layers"),
        qkv_bias=has_attention_bias,
        o_bias=has_attention_bias,
        mlp_bias=bool(fields.get("mlp_bias", False)),
    )


def mistral_config(fields: Fields) -> ModelConfig:
    """Mistral: Llama without biases, and with one sliding window for all layers, or none."""
    fields = {**MISTRAL_DEFAULTS, **fields}
    window = None if fields["sliding_window"] is None else size(fields, "sliding_window")
    expected = "full_attention" if window is None else "sliding_attention"
    if set(fields.get("layer_types") or [expected]) != {expected}:
        # MistralForCausalLM ignores layer_types; a checkpoint that was trained with them is a Ministral.
        raise unsupported("layer_types", fields["layer_types"], f"{expected} in all layers")
    return build_config(fields, sliding_windows=(window,) * size(fields, "num_hidden_layers"))


def qwen2_config(fields: Fields) -> ModelConfig:
    """Qwen2 and Qwen2.5: Llama with biases on q, k and v in every checkpoint, and windows in some layers."""
    fields = {**QWEN2_DEFAULTS, **fields}
    return build_config(fields, sliding_windows=windows_by_layer(fields), qkv_bias=True)


def qwen3_config(fields: Fields) -> ModelConfig:
    """Qwen3: a norm on each head of q and k, heads of 128 unless config.json says otherwise, windows in some layers."""
    fields = {**QWEN3_DEFAULTS, **fields}
    has_bias = bool(fields.get("attention_bias", False))
    windows = windows_by_layer(fields)
    return build_config(fields, sliding_windows=windows, qkv_bias=has_bias, o_bias=has_bias, qk_norm=True)


ARCHITECTURES: dict[str, Callable[[Fields], ModelConfig]] = {
    "LlamaForCausalLM": llama_config,
    "MistralForCausalLM": mistral_config,
    "Qwen2ForCausalLM": qwen2_config,
    "Qwen3ForCausalLM": qwen3_config,
}


def hf_model_config(fields: Fields) -> ModelConfig:
    """The config of a Hugging Face model. Raises UnsupportedModel. fields: those of config.json, `dtype` among them."""
    names = fields.get("architectures") or []
    whole = [name for name in ARCHITECTURES if names == [f"{name.removesuffix('ForCausalLM')}Model"]]
    if whole:
        raise UnsupportedModel(f"architectures: {names[0]!r} is a model without its head: save it as {whole[0]}")
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        raise unsupported("architectures", names, ", ".join(ARCHITECTURES))
    return ARCHITECTURES[names[0]](fields)
