"""Adapters of every kind that PEFT trains, for a tiny model with every module that they can change."""

from pathlib import Path
from typing import Any

from tiny import make_adapter, make_model

MODEL: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 5},
    "bias-all": {"r": 4, "target_modules": ["q_proj", "up_proj"], "bias": "all"},
    "bias-lora-only": {"r": 3, "target_modules": ["v_proj", "o_proj", "down_proj"], "bias": "lora_only"},
    "lora-bias": {"r": 8, "target_modules": ["k_proj", "o_proj", "gate_proj"], "lora_bias": True},
    "dora": {"r": 6, "use_dora": True},
    "dora-attention": {"r": 2, "target_modules": ["q_proj", "v_proj"], "use_dora": True, "use_rslora": True},
    "dora-bias": {"r": 17, "target_modules": ["v_proj", "gate_proj", "down_proj"], "use_dora": True, "bias": "all"},
    "tokens": {"r": 4, "target_modules": ["q_proj", "v_proj"], "trainable_token_indices": [101, 32, 112, 97]},
    "embedding": {"r": 5, "target_modules": ["embed_tokens", "q_proj"]},
    "head": {"r": 12, "target_modules": ["lm_head", "up_proj"]},
    "both": {"r": 20, "target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "tables": {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "norms": {"r": 3, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["norm"]},
    "one-norm": {"r": 2, "target_modules": ["v_proj"], "modules_to_save": ["post_attention_layernorm", "lm_head"]},
    "saved-head": {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
    "dora-tables": {"r": 3, "target_modules": ["embed_tokens", "lm_head", "down_proj"], "use_dora": True},
    "added": {"r": 4, "target_modules": ["q_proj"], "vocab_size": 263},
    "added-tables": {"r": 2, "modules_to_save": ["embed_tokens", "lm_head"], "vocab_size": 288},
    "added-head": {"r": 2, "target_modules": ["v_proj"], "modules_to_save": ["lm_head"], "vocab_size": 261},
    "added-tokens": {"r": 3, "trainable_token_indices": [261, 101, 260, 262], "vocab_size": 264},
    "added-lora": {"r": 5, "target_modules": ["embed_tokens", "lm_head", "q_proj"], "vocab_size": 270},
    "added-dora": {"r": 3, "target_modules": ["embed_tokens", "lm_head"], "use_dora": True, "vocab_size": 262},
    "narrow": {"r": 4, "target_modules": ["o_proj", "up_proj"], "vocab_size": 240},
    "narrow-lora": {"r": 4, "target_modules": ["embed_tokens", "lm_head"], "vocab_size": 241},
}


def make_kinds(folder: Path, **overrides: Any) -> tuple[Path, dict[str, Path]]:
    """Makes a model and an adapter of each kind for it."""
    model = make_model(folder / "model", **MODEL | overrides)
    kinds = {
        name: make_adapter(model, folder / name, seed, **fields) for seed, (name, fields) in enumerate(KINDS.items())
    }
    return model, kinds
