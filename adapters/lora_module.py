"""LoRAModule: an adapter's change of one linear module, derived from the parameters that PEFT trains. numpy only.

    y = gain * (W x + b + scaling * B A x) + shift

where W and b are the base model's. Plain LoRA has neither gain nor shift. DoRA (arXiv 2402.09353) computes
b + m / ||W + scaling * B A|| * (W x + scaling * B A x), with the norm taken over a row's inputs.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .targets import TargetModule

Array = np.ndarray  # of any dtype
NORM_ROWS = 1024  # outputs whose changed weights are computed at a time


@dataclass(frozen=True, slots=True)
class TrainedRows:
    """Rows that replace or extend those of an embedding or a head, or the one row that is the weight of a norm."""

    ids: tuple[int, ...]  # token ids, ascending; empty means all tokens
    rows: Array  # [number of ids, or the vocabulary; hidden_size] float32
    norm: float | None = None  # of the difference from the base model's rows, if these are available


@dataclass(frozen=True, slots=True)
class LoRAModule:
    target: TargetModule
    scaling: float  # alpha / r, or alpha / sqrt(r)
    a: Array  # [rank, in_features] float32; rank 0 where only the bias was trained
    b: Array  # [out_features, rank] float32
    shift: Array | None = None  # [out_features] float32
    gain: Array | None = None  # [out_features] float32
    rows: TrainedRows | None = None  # of an embedding, a head or a norm

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def is_zero(self) -> bool:
        """Whether the outputs are the base model's, as in PEFT's fresh state."""
        if self.rows is not None:
            return False
        has_product = bool(self.a.any() and self.b.any() and self.scaling)
        has_shift = self.shift is not None and bool(self.shift.any())
        has_gain = self.gain is not None and not np.allclose(self.gain, 1, rtol=0, atol=1e-6)
        return not (has_product or has_shift or has_gain)


def dora_gain(weight: Array, magnitude: Array, scaling: float, a: Array, b: Array) -> Array:
    """Returns m / ||W + scaling * B A||, [out] float32. weight: [out, in], magnitude: [out]."""
    norms = np.empty(len(weight), np.float32)
    for first in range(0, len(weight), NORM_ROWS):
        rows = slice(first, first + NORM_ROWS)
        norms[rows] = np.linalg.norm(weight[rows] + scaling * (b[rows] @ a), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain: Array = magnitude / norms
    return gain


class BaseTensors(Protocol):
    def get(self, name: str) -> np.ndarray:
        """Returns the tensor with this Hugging Face name in float32. Raises OSError if it cannot be read."""
