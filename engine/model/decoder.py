"""The decoder of Llama and similar models: one forward pass over a batch of rows. It knows no request and no file.

The differences between architectures (biases, norms on q and k, windows) are in the config, not in subclasses. The
differences between backends are in their attention, LoRA and ops.
"""

from typing import Any

import torch
from torch import Tensor

from blora.adapters.lora import LoRABackend, LoRAMetadata

from ..attention.base import AttentionBackend
from ..model_files.config import ModelConfig
from .batch import ForwardBatch
from .layers import GatedMLP, Linear
from .norms import HeadNorm, Norm
from .ops import DecoderOps
from .shard_group import ALONE, ShardGroup
from .targets import (
    DOWN,
    GATE_UP,
    INPUT_NORM,
    K_NORM,
    OUT,
    POST_ATTENTION_NORM,
    Q_NORM,
    QKV,
    embedding_site,
    head_site,
    last_norm_site,
    norm_site,
    site_of,
)
from .tensors import ModelTensors, layer_sites
from .token_layers import LMHead, TokenEmbedding


class Attention:
    def __init__(
        self,
        config: ModelConfig,
        tensors: ModelTensors,
        layer: int,
        attention: AttentionBackend,
        lora: LoRABackend,
        ops: DecoderOps,
        group: ShardGroup,
    ) -> None:
        qkv, o, _, _ = layer_sites(tensors, layer)
        self._qkv = Linear(qkv.weight, qkv.bias, site_of(layer, QKV), lora)
        self._o = Linear(o.weight, o.bias, site_of(layer, OUT), lora, group)
        self._qk_norm = self._head_norm(config, tensors.layers[layer].qk_norm, layer, ops)
        self._num_heads = config.num_heads
        self._num_qk_heads = config.num_heads + config.num_kv_heads
        self._head_dim = config.head_dim
        self._layer = layer
        self._window = config.sliding_windows[layer]
        self._attention = attention
        self._ops = ops

    def _head_norm(self, config: ModelConfig, weight: Tensor | None, layer: int, ops: DecoderOps) -> HeadNorm | None:
        sites = norm_site(config.num_layers, layer, Q_NORM), norm_site(config.num_layers, layer, K_NORM)
        return None if weight is None else HeadNorm(weight, sites, config.num_heads, ops)

    def forward(self, x: Tensor, angles: Any, batch: ForwardBatch) -> Tensor:
        """x: [num_tokens, hidden]. angles: the ops' own. Returns [num_tokens, hidden]."""
        # The heads of q, then of k, then of v: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]
        heads = self._qkv.forward(x, batch.lora).view(len(x), -1, self._head_dim)
        qk, v = heads[:, : self._num_qk_heads], heads[:, self._num_qk_heads :]
        if self._qk_norm is not None:
            qk = self._qk_norm.forward(qk, batch.lora)
        qk = self._ops.rotate(qk, angles)
        q, k = qk[:, : self._num_heads], qk[:, self._num_heads :]
        y = self._attention.run(self._layer, q, k, v, batch.attention, self._window)
        return self._o.forward(y, batch.lora)


class DecoderLayer:
    def __init__(
        self,
        config: ModelConfig,
        tensors: ModelTensors,
        layer: int,
        attention: AttentionBackend,
        lora: LoRABackend,
        ops: DecoderOps,
        group: ShardGroup,
    ) -> None:
        _, _, gate_up, down = layer_sites(tensors, layer)
        norms, num_layers = tensors.layers[layer], config.num_layers
        self.input_norm = Norm(norms.input_norm, norm_site(num_layers, layer, INPUT_NORM), ops)
        self._attention = Attention(config, tensors, layer, attention, lora, ops, group)
        site = norm_site(num_layers, layer, POST_ATTENTION_NORM)
        self._post_attention_norm = Norm(norms.post_attention_norm, site, ops)
        self._mlp = GatedMLP(gate_up, down, (site_of(layer, GATE_UP), site_of(layer, DOWN)), lora, ops, group)

    def forward(self, normed: Tensor, residual: Tensor, angles: Any, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """normed: the input norm of residual. Both are [num_tokens, hidden]. Returns the MLP's output, which the caller
        adds to the residual, and that residual."""
        x = self._attention.forward(normed, angles, batch)
        normed, residual = self._post_attention_norm.add(x, residual, batch.lora)
        return self._mlp.forward(normed, batch.lora), residual


class CausalLM:
    """A model, or one shard of it.

    For a shard, config and weights are the shard's. Its hidden states are the whole model's in every shard; its logits
    are in the first shard only.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: ModelTensors,
        attention: AttentionBackend,
        lora: LoRABackend,
        ops: DecoderOps,
        group: ShardGroup = ALONE,
    ) -> None:
        self._embedding = TokenEmbedding(tensors.embedding, tensors.tokens, group)
        self._layers = [DecoderLayer(config, tensors, i, attention, lora, ops, group) for i in range(config.num_layers)]
        self._norm = Norm(tensors.norm, last_norm_site(config.num_layers), ops)
        self._head = LMHead(tensors.lm_head, tensors.tokens, group)
        self._head_site, self._embedding_site = head_site(config.num_layers), embedding_site(config.num_layers)
        self.vocab_size = tensors.tokens.vocab_size  # the base model's
        self._lora = lora
        self._ops = ops

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Writes the step's KV. Returns the hidden states after the final norm: [num_tokens, hidden]."""
        angles = self._ops.angles(batch.positions)
        residual = self._embedding.forward(batch.base_token_ids(self.vocab_size))  # [num_tokens, hidden]
        if batch.lora is not None:
            self._lora.embed(self._embedding_site, batch.token_ids, residual, batch.lora)
        # The last sum of a layer is computed together with the next norm.
        norms = [*(layer.input_norm for layer in self._layers), self._norm]
        normed = norms[0].forward(residual, batch.lora)
        for layer, next_norm in zip(self._layers, norms[1:], strict=True):
            x, residual = layer.forward(normed, residual, angles, batch)
            normed, residual = next_norm.add(x, residual, batch.lora)
        return normed

    @torch.inference_mode()
    def compute_logits(self, hidden: Tensor, lora: LoRAMetadata | None = None) -> Tensor:
        """Projects hidden states to logits.

        hidden: [n, hidden], rows that `forward` returned.
        lora: the adapters of these rows.
        Returns [n, vocab] float32, wider where an adapter adds tokens; the further columns of other rows are undefined.
        Every shard but the first returns [n, 0].
        """
        num_added = 0 if lora is None else max(lora.vocab_size - self.vocab_size, 0)
        logits = self._head.project(hidden, num_added)
        if lora is not None:
            self._lora.run(self._head_site, hidden, logits, lora)
        return self._head.gather(logits, num_added).float()
