"""FlashInferOps: the operations between a decoder's linear layers, by FlashInfer's kernels, mostly in place."""

from typing import Any

import torch
from torch import Tensor

from ..model.ops import DecoderOps
from ..model.rope import rope_cache
from ..model_files.config import ModelConfig


class FlashInferOps(DecoderOps):
    def __init__(self, flashinfer: Any, config: ModelConfig, device: torch.device) -> None:
        """flashinfer: the module."""
        self._flashinfer = flashinfer
        self._eps = config.rms_norm_eps
        self._num_heads = config.num_heads
        self._head_dim = config.head_dim
        # One float32 table serves every type of rope: [max_positions, head_dim], first the cosines, then the sines.
        cos_sin = rope_cache(config.rope, config.head_dim, config.max_position_embeddings)
        self._cos_sin = torch.cat(cos_sin, dim=-1).to(device)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = self._flashinfer.rmsnorm(x, weight, eps=self._eps)
        return y

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        self._flashinfer.fused_add_rmsnorm(x, residual, weight, eps=self._eps)
        return x, residual

    def norm_heads(self, heads: Tensor, weight: Tensor) -> Tensor:
        for first, part in ((0, heads[:, : self._num_heads]), (self._num_heads, heads[:, self._num_heads :])):
            self._flashinfer.rmsnorm(part, weight[first], eps=self._eps, out=part)
        return heads

    def angles(self, positions: Tensor) -> Tensor:
        return positions

    def rotate(self, heads: Tensor, angles: Tensor) -> Tensor:
        self._flashinfer.apply_rope_with_cos_sin_cache_inplace(
            angles,
            heads[:, : self._num_heads].view(len(heads), -1),
            heads[:, self._num_heads :].view(len(heads), -1),
            self._head_dim,
            self._cos_sin,
            is_neox=True,
        )
        return heads

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        y: Tensor = self._flashinfer.silu_and_mul(gate_up)
        return y
