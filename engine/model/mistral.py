"""Mistral's config.json: Llama without biases, and one sliding window for all layers, or none."""

from .config import ModelConfig, unsupported
from .hf_fields import Fields, build_config, size

# An absent window is 4096 in transformers; a null one is none.
DEFAULTS = {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}


def mistral_config(fields: Fields) -> ModelConfig:
    fields = {**DEFAULTS, **fields}
    window = None if fields["sliding_window"] is None else size(fields, "sliding_window")
    expected = "full_attention" if window is None else "sliding_attention"
    if set(fields.get("layer_types") or [expected]) != {expected}:
        # MistralForCausalLM ignores them; a checkpoint that was trained with them is a Ministral.
        raise unsupported("layer_types", fields["layer_types"], f"{expected} in all layers")
    return build_config(fields, sliding_windows=(window,) * size(fields, "num_hidden_layers"))
