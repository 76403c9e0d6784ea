"""LayerByLayer: the decoder's layers by one native call for each operation, for steps with norms that adapters have
trained. The one call for all layers norms with the model's weights only.

The operations and their order are those of `engine/kernels/decoder.cpp`, so a token gets the same bits either way.
Arguments are checked once for all layers.
"""

from collections.abc import Sequence
from ctypes import Array, byref
from dataclasses import dataclass

import torch
from torch import Tensor

from blora.adapters.cpu import CpuLoRAMetadata
from blora.adapters.lora import NormUse

from ..attention.cpu import CpuAttention, CpuAttentionMetadata
from ..kernels.library import Activations, DecoderLayer, Epilogue, Kernels
from ..model.targets import INPUT_NORM, K_NORM, POST_ATTENTION_NORM, Q_NORM, norm_site


class References:
    """What a call takes of one layer: making it anew for each call would take as long as the call."""

    def __init__(self, layer: DecoderLayer) -> None:
        self.qkv, self.out = byref(layer.qkv), byref(layer.out)
        self.gate_up, self.down = byref(layer.gate_up), byref(layer.down)
        self.attention = byref(layer.attention)
        self.input_norm, self.post_attention_norm = layer.input_norm, layer.post_attention_norm


@dataclass(frozen=True, slots=True)
class Step:
    at: Activations
    qkv: Tensor
    attended: Tensor
    rows: CpuAttentionMetadata
    lora: CpuLoRAMetadata
    adapters: int | None  # the address of their plan


class LayerByLayer:
    def __init__(
        self,
        kernels: Kernels,
        layers: Array[DecoderLayer],
        qk_norms: Sequence[Tensor | None],
        attention: CpuAttention,
    ) -> None:
        """qk_norms: of each layer, [num_heads + num_kv_heads, head_dim], or None."""
        self._kernels, self._layers, self._qk_norms, self._attention = kernels, layers, qk_norms, attention
        self._references = [References(layer) for layer in layers]
        self._shape = layers[0]  # all layers have its shapes
        self._width = self._shape.qkv.in_

    def run(self, activations: Sequence[Tensor | None], rows: CpuAttentionMetadata, lora: CpuLoRAMetadata) -> None:
        """Runs all layers and changes the first activation, `hidden`. activations: as for Kernels.decoder."""
        at, adapters = self._kernels.decoder_arguments(self._layers, activations, rows.plan, lora)
        _, _, qkv, attended, _, _ = activations
        if qkv is None or attended is None:
            raise ValueError("activations: qkv and attended are missing")
        step = Step(at, qkv, attended, rows, lora, adapters)
        for index in range(len(self._layers)):
            self._run_layer(index, step)

    def _run_layer(self, index: int, step: Step) -> None:
        layer, at, linear = self._references[index], step.at, self._kernels.library.blora_linear
        tokens, adapters = at.num_tokens, step.adapters
        self._norm_hidden(layer.input_norm, self._site(index, INPUT_NORM), step)
        linear(layer.qkv, at.normed, at.qkv, tokens, self._shape.qkv.out, Epilogue.STORE, adapters)
        self._attend(index, step)
        linear(layer.out, at.attended, at.hidden, tokens, self._shape.out.out, Epilogue.ADD, adapters)
        self._norm_hidden(layer.post_attention_norm, self._site(index, POST_ATTENTION_NORM), step)
        inner = self._shape.down.in_
        if at.gate_up is None:
            linear(layer.gate_up, at.normed, at.gated, tokens, inner, Epilogue.SILU_MUL, adapters)
        else:
            linear(layer.gate_up, at.normed, at.gate_up, tokens, 2 * inner, Epilogue.STORE, adapters)
            self._kernels.library.blora_silu_mul(at.gate_up, tokens, inner, self._shape.qkv.dtype, at.gated)
        linear(layer.down, at.gated, at.hidden, tokens, self._shape.down.out, Epilogue.ADD, adapters)

    def _norm_hidden(self, weight: int, site: int, step: Step) -> None:
        """Norms as `norm_rows` does, without further checks. weight: the address of the model's."""
        rms_norm, at, width, dtype = self._kernels.library.blora_rms_norm, step.at, self._width, self._shape.qkv.dtype
        rms_norm(at.hidden, weight, at.num_tokens, width, self._shape.eps, dtype, at.normed)
        for use in step.lora.norms.at(site):
            if len(use.weight) != width:
                raise ValueError(f"lora: the norm at site {site} has {len(use.weight)} weights, not {width}")
            first = use.start * width * use.weight.itemsize
            num_tokens, own = use.end - use.start, use.weight.data_ptr()
            rms_norm(at.hidden + first, own, num_tokens, width, self._shape.eps, dtype, at.normed + first)

    def _attend(self, index: int, step: Step) -> None:
        weight, at = self._qk_norms[index], step.at
        if weight is not None and any(step.lora.norms.at(self._site(index, norm)) for norm in (Q_NORM, K_NORM)):
            self._norm_heads(index, weight, step)
            self._attention.run_normed(index, step.qkv, step.attended, step.rows)
        else:
            attention = self._references[index].attention
            self._kernels.library.blora_attention(attention, byref(step.rows.plan), at.qkv, at.attended)

    def _norm_heads(self, index: int, weight: Tensor, step: Step) -> None:
        num_heads, eps = self._attention.layers[index].num_heads, self._shape.eps
        heads = step.qkv.view(len(step.qkv), -1, weight.shape[1])  # of q, of k, of v
        for norm, first, end in ((Q_NORM, 0, num_heads), (K_NORM, num_heads, len(weight))):
            plain = heads[:, first:end].reshape(-1, weight.shape[1])
            normed = torch.empty_like(plain)
            uses = step.lora.norms.at(self._site(index, norm))
            norm_rows(self._kernels, plain, weight[first], eps, normed, uses, rows_per_token=end - first)
            heads[:, first:end] = normed.view(len(heads), end - first, -1)

    def _site(self, index: int, norm: int) -> int:
        return norm_site(len(self._layers), index, norm)


def norm_rows(
    kernels: Kernels,
    x: Tensor,
    weight: Tensor,
    eps: float,
    y: Tensor,
    uses: Sequence[NormUse],
    rows_per_token: int = 1,
) -> None:
    """Norms all rows with the model's weight, and those of `uses` again with theirs.

    x, y: [rows, width], not the same.
    """
    kernels.rms_norm(x, weight, eps, y)
    for use in uses:
        own = slice(use.start * rows_per_token, use.end * rows_per_token)
        kernels.rms_norm(x[own], use.weight, eps, y[own])
