"""The supported architectures: one line each. A new one is a new file and one line here."""

from collections.abc import Callable

from .config import ModelConfig, unsupported
from .hf_fields import Fields
from .llama import llama_config
from .mistral import mistral_config
from .qwen2 import qwen2_config
from .qwen3 import qwen3_config

ARCHITECTURES: dict[str, Callable[[Fields], ModelConfig]] = {
    "LlamaForCausalLM": llama_config,
    "MistralForCausalLM": mistral_config,
    "Qwen2ForCausalLM": qwen2_config,
    "Qwen3ForCausalLM": qwen3_config,
}


def hf_model_config(fields: Fields) -> ModelConfig:
    """fields: of a config.json, with `dtype` present. Raises UnsupportedModel."""
    names = fields.get("architectures") or []
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        raise unsupported("architectures", names, ", ".join(ARCHITECTURES))
    return ARCHITECTURES[names[0]](fields)
