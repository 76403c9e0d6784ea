"""An AsyncLLM whose children are a world's, and the folder of its model, which has no weights: no child reads any."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from byte_tokenizer import make_tokenizer
from simulation.world import VOCAB_SIZE, World

from blora.engine import AsyncLLM


def make_llm(world: World, **options: Any) -> AsyncLLM:
    """To be called in the world's event loop."""

    class SimulatedLLM(AsyncLLM):
        _start_child = staticmethod(world.start_child)

    return SimulatedLLM(model_folder(), **options)


@cache
def model_folder() -> str:
    folder = Path(tempfile.mkdtemp(prefix="blora-simulation-"))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 256,
    }
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer(folder)
    return str(folder)
