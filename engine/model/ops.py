"""DecoderOps: the operations between a decoder's linear layers and its attention, which each backend may replace.

TorchOps is plain torch; tests compare the others with it.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model_files.config import ModelConfig
from .rope import rope_cache, rotate


class DecoderOps(ABC):
    """Every method may overwrite its arguments: only its result may be used afterwards."""

    @abstractmethod
    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Returns x / sqrt(mean(x^2) + eps) * weight (RMSNorm), summed in float32. x stays unchanged.

        x: [n, width]. weight: [width].
        """

    @abstractmethod
    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the norm of residual + x, and that sum. x, residual: [n, width]. weight: [width]."""

    @abstractmethod
    def norm_heads(self, heads: Tensor, weight: Tensor) -> Tensor:
        """Returns the RMSNorm of each head.

        heads: [n, heads of q, then of k, head_dim].
        weight: [heads, head_dim]; all heads of q have the same, and all heads of k.
        """

    @abstractmethod
    def angles(self, positions: Tensor) -> Any:
        """Returns the argument of `rotate` for a step. positions: [n] int64."""

    @abstractmethod
    def rotate(self, heads: Tensor, angles: Any) -> Tensor:
        """Applies the rotary embedding, in the order of GPT-NeoX. heads: [n, heads of q, then of k, head_dim]."""

    @abstractmethod
    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """Returns silu(gate) * up, [n, width]. gate_up: [n, 2 * width], gate first."""


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
        """Returns cosines and sines, each [n, 1, head_dim // 2]."""
        return self._cos[positions, None], self._sin[positions, None]

    def rotate(self, heads: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        return rotate(heads, *angles)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)  # [n, width] each
        return F.silu(gate) * up


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, normalised in float32, weighted in x's dtype. weight: broadcast to x's shape."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)
