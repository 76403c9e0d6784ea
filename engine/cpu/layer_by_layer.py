"""LayerByLayer: the decoder's layers by one native call for each operation, for steps with norms that adapters have
trained. The one call for all layers norms with the model's weights only.

The operations and their order are those of `engine/kernels/decoder.cpp`, so a token gets the same bits either way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blora.adapters.cpu import CpuLoRAMetadata

from ..attention.cpu import CpuAttention, CpuAttentionMetadata
from ..kernels.library import Epilogue, Kernels, PackedLinear
from ..model.targets import INPUT_NORM, K_NORM, POST_ATTENTION_NORM, Q_NORM, norm_site
from ..model.tensors import LayerTensors

Activations = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]  # as Kernels.decoder takes them


@dataclass(frozen=True, slots=True)
class Projections:
    """A layer's packed weights."""

    qkv: PackedLinear
    out: PackedLinear
    gate_up: PackedLinear
    down: PackedLinear


class LayerByLayer:
    def __init__(
        self,
        kernels: Kernels,
        eps: float,
        norms: Sequence[LayerTensors],
        projections: Sequence[Projections],
        attention: CpuAttention,
    ) -> None:
        """eps: of the norms. norms, projections: of each layer."""
        self._kernels, self._eps = kernels, eps
        self._norms, self._projections, self._attention = norms, projections, attention

    def run(self, at: Activations, rows: CpuAttentionMetadata, lora: CpuLoRAMetadata) -> None:
        """Runs all layers and changes the first activation, `hidden`."""
        for layer in range(len(self._norms)):
            self._run_layer(layer, at, rows, lora)

    def _run_layer(self, layer: int, at: Activations, rows: CpuAttentionMetadata, lora: CpuLoRAMetadata) -> None:
        kernels, norms, own = self._kernels, self._norms[layer], self._projections[layer]
        hidden, normed, qkv, attended, gate_up, gated = at
        self.norm(hidden, norms.input_norm, self._site(layer, INPUT_NORM), normed, lora)
        kernels.linear(own.qkv, normed, qkv, Epilogue.STORE, lora)
        self._attend(layer, qkv, attended, rows, lora)
        kernels.linear(own.out, attended, hidden, Epilogue.ADD, lora)
        self.norm(hidden, norms.post_attention_norm, self._site(layer, POST_ATTENTION_NORM), normed, lora)
        if gate_up is None:
            kernels.linear(own.gate_up, normed, gated, Epilogue.SILU_MUL, lora)
        else:
            kernels.linear(own.gate_up, normed, gate_up, Epilogue.STORE, lora)
            kernels.silu_mul(gate_up, gated)
        kernels.linear(own.down, gated, hidden, Epilogue.ADD, lora)

    def norm(
        self, x: Tensor, weight: Tensor, site: int, y: Tensor, lora: CpuLoRAMetadata, rows_per_token: int = 1
    ) -> None:
        """Norms all rows with the model's weight, and those of adapters that have trained the norm again with theirs.

        x, y: [num_tokens * rows_per_token, width], not the same. weight: [width].
        """
        self._kernels.rms_norm(x, weight, self._eps, y)
        for use in lora.norms.at(site):
            own = slice(use.start * rows_per_token, use.end * rows_per_token)
            self._kernels.rms_norm(x[own], use.weight, self._eps, y[own])

    def _attend(self, layer: int, qkv: Tensor, y: Tensor, rows: CpuAttentionMetadata, lora: CpuLoRAMetadata) -> None:
        weight = self._norms[layer].qk_norm
        sites = self._site(layer, Q_NORM), self._site(layer, K_NORM)
        if weight is None or not any(map(lora.norms.at, sites)):
            self._attention.run(layer, qkv, y, rows)
            return
        heads = qkv.view(len(qkv), -1, weight.shape[1])  # of q, of k, of v
        num_q = self._attention.layers[layer].num_heads
        for site, first, end in ((sites[0], 0, num_q), (sites[1], num_q, len(weight))):
            plain = heads[:, first:end].reshape(-1, weight.shape[1])
            normed = torch.empty_like(plain)
            self.norm(plain, weight[first], site, normed, lora, end - first)
            heads[:, first:end] = normed.view(len(qkv), end - first, -1)
        self._attention.run_normed(layer, qkv, y, rows)

    def _site(self, layer: int, norm: int) -> int:
        return norm_site(len(self._norms), layer, norm)
