"""What a model is, as plain data: the type that every reader of a model's files returns.

Knows no tensor and imports no torch: the front-end process reads it too.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EngineStartError


class UnsupportedModel(EngineStartError, ValueError):
    """A model that cannot be served as its files describe it; the message names what was found."""


def unsupported(what: str, found: object, supported: object) -> UnsupportedModel:
    return UnsupportedModel(f"{what}: {found!r} is not supported; supported: {supported}")


def read_json(path: Path) -> Any:
    """The content of one of a model's files. Raises UnsupportedModel naming the file."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{path} cannot be read as JSON: {error}") from error


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding. What each type makes of the fields is in `rope.py`."""

    rope_type: str  # "default", "linear", "llama3", "yarn" or "divisors"
    theta: float
    factor: float = 1.0  # by how much the context was extended
    original_max_positions: int = 0  # before it was extended (llama3, yarn)
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: whole dimensions bound the ramp
    attention_factor: float = 1.0  # cos and sin are multiplied by it (yarn)
    divisors: tuple[float, ...] = ()  # [head_dim // 2]: of each frequency, where a GGUF file lists them


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    architecture: str  # name of the Hugging Face class
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm over each head of q and k, before rotation
    sliding_windows: tuple[int | None, ...]  # [num_layers] tokens that a token sees, itself included; None is all
    tie_word_embeddings: bool  # the LM head is the embedding table
    dtype: str  # of the checkpoint, such as "bfloat16"

    @property
    def num_parameters(self) -> int:
        """Matrices and embeddings; norms and biases are left out, being less than a thousandth of them."""
        attention = 2 * self.head_dim * (self.num_heads + self.num_kv_heads)
        layer = self.hidden_size * (attention + 3 * self.intermediate_size)
        tables = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * layer + tables
