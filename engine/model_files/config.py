"""ModelConfig: the description of a model as plain data, which every reader of a model's files returns.

It knows no tensor and imports no torch: the front-end process uses it too.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blora.adapters.peft.foreign import LFS_POINTER, is_lfs_pointer

from ..errors import EngineStartError


class UnsupportedModel(EngineStartError, ValueError):
    """A model that cannot be served as its files describe it. The message names the field and its value."""


def unsupported(what: str, found: object, supported: object) -> UnsupportedModel:
    return UnsupportedModel(f"{what}: {found!r} is not supported; supported: {supported}")


def read_json(path: Path) -> Any:
    """Reads one of a model's files. Raises UnsupportedModel that names the file."""
    try:
        content = path.read_bytes()
        if is_lfs_pointer(content):
            raise UnsupportedModel(f"{path} is {LFS_POINTER}")
        return json.loads(content)
    except (OSError, ValueError, RecursionError) as error:  # an integer of many thousand digits, too, is a ValueError
        raise UnsupportedModel(f"{path} cannot be read as JSON: {error}") from error


# What a description may say at most, by the names of ModelConfig: several times what any model has. A larger one is a
# fault or an attack, and would take long to plan for before anything is read.
MOST = {"num_layers": 4096, "num_heads": 4096, "num_kv_heads": 4096, "head_dim": 4096}
MOST_OF_OTHERS = 1 << 24  # of widths, the vocabulary and the length


def check_bounded(what: str, name: str, value: object) -> int:
    """Returns a positive integer. what: the field of the file, name: that of ModelConfig. Raises UnsupportedModel."""
    most = MOST.get(name, MOST_OF_OTHERS)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModel(f"{what}: {value!r:.80} is not a positive integer")
    if value > most:
        raise UnsupportedModel(f"{what}: {value!r:.20} is more than {most}, which no model has")
    return value


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """The rotary position embedding. The formula of each type is in `rope.py`."""

    rope_type: str  # "default", "linear", "llama3", "yarn" or "divisors"
    theta: float
    factor: float = 1.0  # of the context's extension
    original_max_positions: int = 0  # before the extension (llama3, yarn)
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: whole dimensions bound the ramp
    attention_factor: float = 1.0  # factor of cos and sin (yarn)
    divisors: tuple[float, ...] = ()  # [head_dim // 2]: one for each frequency, if a GGUF file lists them


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
    sliding_windows: tuple[int | None, ...]  # [num_layers] tokens that a token sees, itself included; None: all
    tie_word_embeddings: bool  # whether the LM head is the embedding
    dtype: str  # the checkpoint's, such as "bfloat16"

    @property
    def num_parameters(self) -> int:
        """The number of parameters in matrices and embeddings. Norms and biases are less than a thousandth of them."""
        attention = 2 * self.head_dim * (self.num_heads + self.num_kv_heads)
        layer = self.hidden_size * (attention + 3 * self.intermediate_size)
        token_rows = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * layer + token_rows
