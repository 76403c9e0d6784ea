"""DecoderOps: what a decoder computes between its linear layers and its attention, so that a backend can bring its own.

TorchOps is plain torch, the oracle of the others.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model_files.config import ModelConfig
from .rope import rope_cache, rotate


class DecoderOps(ABC):
    """A tensor that is given may be written over: only what is returned is to be used afterwards."""

    @abstractmethod
    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm, x / sqrt(mean(x^2) + eps) * weight, summed in float32. x: [n, width], weight: [width]. x stays."""

    @abstractmethod
    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of residual + x, and that sum. x, residual: [n, width], weight: [width]."""

    @abstractmethod
    def norm_heads(self, heads: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm of each head. heads: [n, heads of q, then of k, head_dim], weight: [heads, head_dim], the same for
        all heads of q and for all of k."""

    @abstractmethod
    def angles(self, positions: Tensor) -> Any:
        """What `rotate` needs to know of a step. positions: [n] int64."""

    @abstractmethod
    def rotate(self, heads: Tensor, angles: Any) -> Tensor:
        """Rotary embedding in the order of GPT-NeoX. heads: [n, heads of q, then of k, head_dim]."""

    @abstractmethod
    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up. gate_up: [n, 2 * width], gate first. Returns [n, width]."""


class TorchOps(DecoderOps):
    def __init__(self, config: ModelConfig) -> None:
        self._eps = config.rms_norm_eps
        self._cos, self._sin = rope_cache(config.rope, config.head_dim, config.max_position_embeddings)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, self._eps)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = residual + x
        return self.norm(total, weight), total

    def norm_heads(self, heads: Tensor, weight: Tensor) -> Tensor:
        return self.norm(heads, weight)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines: [n, 1, head_dim // 2] each."""
        return self._cos[positions, None], self._sin[positions, None]

    def rotate(self, heads: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        return rotate(heads, *angles)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)  # [n, width] each
        return F.silu(gate) * up


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension: normalised in float32, weighted in x's dtype. weight: any shape that spreads over x."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)
