"""Tiny random models and adapters, made when needed: a Llama of a few thousand weights with a byte tokenizer."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from byte_tokenizer import EOS, make_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

ALL_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCAB_SIZE = 260  # a little wider than the tokenizer, as real models are


def make_model(folder: Path, config: type[PreTrainedConfig] = LlamaConfig, **overrides: Any) -> Path:
    """Makes a Hugging Face folder with a random float32 model, a Llama unless its configuration is of another class."""
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,  # large, so that the best two logits are rarely close
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": EOS,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**fields | overrides))
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):  # biases are zero when a model is made
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses PEFT's warnings of things that these tests intend: tied tables, saved tables, a vector that looks like
    a torn matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_resized(model: Path, vocab_size: int | None) -> Any:
    """Loads a model and resizes it as a user does after adding tokens to the tokenizer."""
    base = AutoModelForCausalLM.from_pretrained(model)
    if vocab_size is not None:
        base.resize_token_embeddings(vocab_size, mean_resizing=False)
    return base


def make_adapter(model: Path, folder: Path, seed: int = 0, vocab_size: int | None = None, **fields: Any) -> Path:
    """Makes a PEFT folder with random weights, large enough to change most tokens. vocab_size: the resized model's."""
    torch.manual_seed(seed)
    base = load_resized(model, vocab_size)
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": ALL_MODULES, "task_type": "CAUSAL_LM"}
    torch.manual_seed(seed)
    with quiet():
        adapted = get_peft_model(base, LoraConfig(**defaults | fields))
    for name, parameter in adapted.named_parameters():
        if "lora_magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.randn(parameter.shape)
        elif "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        elif parameter.requires_grad:  # biases, rows of tables
            parameter.data += 0.3 * torch.randn(parameter.shape)
    with quiet():
        adapted.save_pretrained(folder)
    return folder
