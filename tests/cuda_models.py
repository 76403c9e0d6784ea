"""Tiny random models of every architecture that FlashInfer has kernels for."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tiny import EOS, VOCAB_SIZE, make_tokenizer

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large, so that the best two logits are rarely close
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": EOS,
}
WINDOWED = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 10000.0}


def save_model(folder: Path, architecture: str, **fields: Any) -> Path:
    torch.manual_seed(0)
    config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    model = getattr(transformers, architecture)(config_class(**{**SIZES, **fields}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # zeros and ones would hide a mistake
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder
