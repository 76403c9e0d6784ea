"""CpuCausalLM: the decoder on the native kernels. Same parts and order as `model/decoder.py`, fewer and larger calls.

Takes the weights over: matrices are packed in place, one copy of each, and cannot be read as matrices afterwards.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blora.adapters.cpu import CpuLoRAMetadata

from ..attention.cpu import CpuAttention
from ..inputs import ForwardBatch
from ..model.config import ModelConfig
from ..model.targets import DOWN, GATE_UP, OUT, QKV, site_of
from ..model.weights import ModelWeights, Projection, layer_sites
from .library import PANEL, Epilogue, Kernels, PackedLinear


@dataclass(frozen=True, slots=True)
class Activations:
    """What a step's tokens are on their way, the same memory for every layer."""

    hidden: Tensor  # [num_tokens, hidden_size]: the residual stream
    normed: Tensor  # [num_tokens, hidden_size]
    qkv: Tensor  # [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]
    attended: Tensor  # [num_tokens, num_heads * head_dim]
    gate_up: Tensor | None  # [num_tokens, 2 * intermediate_size], where gate and up are not whole panels
    gated: Tensor  # [num_tokens, intermediate_size]


class CpuDecoderLayer:
    def __init__(
        self, kernels: Kernels, config: ModelConfig, weights: ModelWeights, layer: int, attention: CpuAttention
    ) -> None:
        qkv, out, gate_up, down = layer_sites(weights, layer)

        def pack(projection: Projection, site: int) -> PackedLinear:
            return kernels.pack_linear(projection.weight, projection.bias, site_of(layer, site))

        self._qkv, self._out = pack(qkv, QKV), pack(out, OUT)
        self._gate_up, self._down = pack(gate_up, GATE_UP), pack(down, DOWN)
        self._input_norm = weights.layers[layer].input_norm
        self._post_attention_norm = weights.layers[layer].post_attention_norm
        self._eps = config.rms_norm_eps
        self._layer = layer
        self._attention = attention
        self._kernels = kernels

    def forward(self, at: Activations, batch: ForwardBatch, lora: int | None) -> None:
        """Changes at.hidden in place. lora: address of the step's adapters."""
        kernels = self._kernels
        kernels.rms_norm(at.hidden, self._input_norm, self._eps, at.normed)
        kernels.linear(self._qkv, at.normed, at.qkv, Epilogue.STORE, lora)
        self._attention.run(self._layer, at.qkv, at.attended, batch.attention)
        kernels.linear(self._out, at.attended, at.hidden, Epilogue.ADD, lora)
        kernels.rms_norm(at.hidden, self._post_attention_norm, self._eps, at.normed)
        if at.gate_up is None:
            kernels.linear(self._gate_up, at.normed, at.gated, Epilogue.SILU_MUL, lora)
        else:
            kernels.linear(self._gate_up, at.normed, at.gate_up, Epilogue.STORE, lora)
            kernels.silu_mul(at.gate_up, at.gated)
        kernels.linear(self._down, at.gated, at.hidden, Epilogue.ADD, lora)


class CpuCausalLM:
    def __init__(self, kernels: Kernels, config: ModelConfig, weights: ModelWeights, attention: CpuAttention) -> None:
        self._kernels = kernels
        self._config = config
        self._layers = [
            CpuDecoderLayer(kernels, config, weights, layer, attention) for layer in range(config.num_layers)
        ]
        self._norm = weights.norm
        self._head = kernels.pack_linear(weights.lm_head)
        # A tied table is the packed head itself.
        self._embedding = None if weights.embedding is weights.lm_head else weights.embedding

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Writes the step's KV. Returns the hidden states after the final norm: [num_tokens, hidden]."""
        if batch.lora is not None and not isinstance(batch.lora, CpuLoRAMetadata):
            raise TypeError(f"metadata of another backend: {type(batch.lora).__name__}")
        lora = None if batch.lora is None else batch.lora.address
        at = self._allocate(len(batch.token_ids))
        self._embed(batch.token_ids, at.hidden)
        for layer in self._layers:
            layer.forward(at, batch, lora)
        self._kernels.rms_norm(at.hidden, self._norm, self._config.rms_norm_eps, at.normed)
        return at.normed

    @torch.inference_mode()
    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden: [n, hidden], rows of what `forward` returned. Returns [n, vocab] float32."""
        logits = torch.empty(len(hidden), self._config.vocab_size)
        self._kernels.linear(self._head, hidden, logits, Epilogue.STORE_FLOAT)
        return logits

    def _embed(self, token_ids: Tensor, y: Tensor) -> None:
        if self._embedding is None:
            self._kernels.unpack_rows(self._head, token_ids, y)
        else:
            y.copy_(F.embedding(token_ids, self._embedding))

    def _allocate(self, num_tokens: int) -> Activations:
        config, like = self._config, self._norm
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        is_gated_apart = config.intermediate_size % PANEL != 0

        def empty(width: int) -> Tensor:
            return like.new_empty(num_tokens, width)

        return Activations(
            hidden=empty(config.hidden_size),
            normed=empty(config.hidden_size),
            qkv=empty(q + 2 * kv),
            attended=empty(q),
            gate_up=empty(2 * config.intermediate_size) if is_gated_apart else None,
            gated=empty(config.intermediate_size),
        )
