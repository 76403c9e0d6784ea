"""CpuCausalLM: the decoder on the native kernels, all layers in one call, in the order of `model/decoder.py`; layer by
layer in a step with norms that adapters have trained.

The class takes the weights over. It packs the matrices in place, so each exists once; afterwards they cannot be read as
matrices.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from blora.adapters.cpu import CpuLoRAMetadata
from blora.adapters.lora import LoRAMetadata

from ..attention.cpu import CpuAttention, CpuAttentionMetadata
from ..kernels.library import PANEL, DecoderLayer, Epilogue, Kernels, PackedLinear
from ..model.batch import ForwardBatch
from ..model.targets import DOWN, GATE_UP, OUT, QKV, embedding_site, head_site, last_norm_site, site_of
from ..model.tensors import ModelTensors, Projection, layer_sites
from ..model_files.config import ModelConfig
from .layer_by_layer import LayerByLayer, norm_rows


class CpuCausalLM:
    def __init__(self, kernels: Kernels, config: ModelConfig, tensors: ModelTensors, attention: CpuAttention) -> None:
        self._kernels = kernels
        self._config = config
        self.vocab_size = config.vocab_size  # the base model's
        self._weights = tensors  # kept alive: the layers hold addresses
        self._attention = attention
        self._layers = (DecoderLayer * config.num_layers)(*map(self._layer, range(config.num_layers)))
        qk_norms = [layer.qk_norm for layer in tensors.layers]
        self._layer_by_layer = LayerByLayer(kernels, self._layers, qk_norms, attention)
        self._norm = tensors.norm
        self._head = kernels.pack_linear(tensors.lm_head, site=head_site(config.num_layers))
        # None: the embedding is tied to the head, and its rows are unpacked from the packed head.
        self._embedding = None if tensors.embedding is tensors.lm_head else tensors.embedding

    def _layer(self, layer: int) -> DecoderLayer:
        def pack(projection: Projection, site: int) -> PackedLinear:
            return self._kernels.pack_linear(projection.weight, projection.bias, site_of(layer, site))

        qkv, out, gate_up, down = layer_sites(self._weights, layer)
        norms = self._weights.layers[layer]
        return DecoderLayer(
            qkv=pack(qkv, QKV).layer,
            out=pack(out, OUT).layer,
            gate_up=pack(gate_up, GATE_UP).layer,
            down=pack(down, DOWN).layer,
            attention=self._attention.layers[layer],
            input_norm=norms.input_norm.data_ptr(),
            post_attention_norm=norms.post_attention_norm.data_ptr(),
            eps=self._config.rms_norm_eps,
        )

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Writes the step's KV. Returns the hidden states after the final norm: [num_tokens, hidden]."""
        rows, lora = batch.attention, batch.lora
        if not isinstance(rows, CpuAttentionMetadata) or not isinstance(lora, CpuLoRAMetadata | None):
            raise TypeError(f"metadata of another backend: {type(rows).__name__}, {type(lora).__name__}")
        activations = self._allocate(len(batch.token_ids))
        hidden, normed, *_ = activations
        self._embed(batch.base_token_ids(self.vocab_size), hidden)
        site = embedding_site(self._config.num_layers)
        if lora is not None and lora.num_inputs(site):
            self._kernels.embed(site, batch.token_ids, hidden, lora)
        if lora is not None and lora.norms:
            self._layer_by_layer.run(activations, rows, lora)
            uses = lora.norms.at(last_norm_site(self._config.num_layers))
            norm_rows(self._kernels, hidden, self._norm, self._config.rms_norm_eps, normed, uses)
            return normed
        self._kernels.decoder(self._layers, activations, rows.plan, lora)
        self._kernels.rms_norm(hidden, self._norm, self._config.rms_norm_eps, normed)
        return normed

    @torch.inference_mode()
    def compute_logits(self, hidden: Tensor, lora: LoRAMetadata | None = None) -> Tensor:
        """Projects hidden states to logits.

        hidden: [n, hidden], rows that `forward` returned.
        lora: the adapters of these rows.
        Returns [n, vocab] float32, wider where an adapter adds tokens. The further columns of other rows are undefined.
        """
        if not isinstance(lora, CpuLoRAMetadata | None):
            raise TypeError(f"metadata of another backend: {type(lora).__name__}")
        width = self.vocab_size if lora is None else max(self.vocab_size, lora.vocab_size)
        logits = torch.empty(len(hidden), width)
        self._kernels.linear(self._head, hidden, logits, Epilogue.STORE_FLOAT, lora)
        if lora is not None:
            self._kernels.replace_logits(self._head, hidden, logits, lora)
        return logits

    def _embed(self, token_ids: Tensor, y: Tensor) -> None:
        if self._embedding is None:
            self._kernels.unpack_rows(self._head, token_ids, y)
        else:
            y.copy_(F.embedding(token_ids, self._embedding))

    def _allocate(self, num_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """Allocates hidden, normed, qkv, attended, gate_up and gated, which all layers share."""
        config, like = self._config, self._norm
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        is_gated_at_once = config.intermediate_size % PANEL == 0

        def empty(width: int) -> Tensor:
            return like.new_empty(num_tokens, width)

        return (
            empty(config.hidden_size),
            empty(config.hidden_size),
            empty(q + 2 * kv),
            empty(q),
            None if is_gated_at_once else empty(2 * config.intermediate_size),
            empty(config.intermediate_size),
        )
