"""The parameters of a model as tensors. Projections are fused; each Hugging Face tensor is a view of its place in them.

The file owns shapes and places. The loader fills them, and the decoder computes with them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blora.adapters.shard_cut import Range

from ..model_files.config import ModelConfig
from .shard import Shard, Tokens, all_tokens
from .targets import DOWN, GATE_UP, OUT, QKV, SITES_PER_LAYER, lora_targets, site_of

CPU = torch.device("cpu")
PANEL = 16  # rows


@dataclass(frozen=True, slots=True)
class Projection:
    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]


@dataclass(frozen=True, slots=True)
class LayerTensors:
    input_norm: Tensor  # [hidden]
    qk_norm: Tensor | None  # [num_heads + num_kv_heads, head_dim]: the q norm for each head, then the k norm
    post_attention_norm: Tensor  # [hidden]


@dataclass(frozen=True, slots=True)
class ModelTensors:
    tokens: Tokens  # the rows of embedding and lm_head
    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerTensors, ...]  # [num_layers]
    sites: tuple[Projection, ...]  # [num_layers * SITES_PER_LAYER]
    norm: Tensor  # [hidden]
    lm_head: Tensor  # [vocab, hidden]; the embedding itself if they are tied


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a checkpoint's tensor, or of some of its rows and columns, one range after another.

    `view` may be wider than the tensor: the values are repeated over it.
    """

    view: Tensor
    shape: tuple[int, ...]  # of the whole tensor
    rows: tuple[Range, ...] | None = None  # None: all
    columns: Range | None = None  # None: all


def allocate(
    config: ModelConfig, dtype: torch.dtype, device: torch.device = CPU, shard: Shard | None = None
) -> ModelTensors:
    """Allocates uninitialised memory, which the operating system commits as it is written.

    shard: the shard to allocate; None: the whole model.
    """
    with device:
        if shard is None:
            return _allocate(config, dtype, all_tokens(config.vocab_size))
        return _allocate(shard.config, dtype, shard.tokens)


def _allocate(config: ModelConfig, dtype: torch.dtype, tokens: Tokens) -> ModelTensors:
    embedding = _matrix(config.vocab_size, config.hidden_size, dtype)
    return ModelTensors(
        tokens=tokens,
        embedding=embedding,
        layers=tuple(_allocate_layer(config, dtype) for _ in range(config.num_layers)),
        sites=tuple(_allocate_sites(config, dtype)),
        norm=torch.empty(config.hidden_size, dtype=dtype),
        lm_head=embedding if config.tie_word_embeddings else _matrix(config.vocab_size, config.hidden_size, dtype),
    )


def _matrix(num_rows: int, num_columns: int, dtype: torch.dtype) -> Tensor:
    """A matrix with memory for whole panels of rows, so that a backend can pack it in place."""
    return torch.empty(-(-num_rows // PANEL) * PANEL, num_columns, dtype=dtype)[:num_rows]


def _allocate_layer(config: ModelConfig, dtype: torch.dtype) -> LayerTensors:
    qk_heads = config.num_heads + config.num_kv_heads
    return LayerTensors(
        input_norm=torch.empty(config.hidden_size, dtype=dtype),
        qk_norm=torch.empty(qk_heads, config.head_dim, dtype=dtype) if config.qk_norm else None,
        post_attention_norm=torch.empty(config.hidden_size, dtype=dtype),
    )


def _allocate_sites(config: ModelConfig, dtype: torch.dtype) -> list[Projection]:
    has_bias = {QKV: config.qkv_bias, OUT: config.o_bias, GATE_UP: config.mlp_bias, DOWN: config.mlp_bias}
    shapes: dict[int, tuple[int, int]] = {}
    for target in lora_targets(config):  # a site ends where its last module ends
        shapes[target.site] = (target.offset + target.out_features, target.in_features)
    return [
        Projection(
            weight=_matrix(*shape, dtype),
            bias=torch.empty(shape[0], dtype=dtype) if has_bias[site % SITES_PER_LAYER] else None,
        )
        for site, shape in sorted(shapes.items())
    ]


def places(tensors: ModelTensors, config: ModelConfig) -> dict[str, Place]:
    """The place of every tensor that the model needs, by Hugging Face name."""
    views = {"model.embed_tokens.weight": tensors.embedding, "model.norm.weight": tensors.norm}
    if not config.tie_word_embeddings:
        views["lm_head.weight"] = tensors.lm_head
    for layer, norms in enumerate(tensors.layers):
        views[f"model.layers.{layer}.input_layernorm.weight"] = norms.input_norm
        views[f"model.layers.{layer}.post_attention_layernorm.weight"] = norms.post_attention_norm
    for target in lora_targets(config):
        site, rows = tensors.sites[target.site], slice(target.offset, target.offset + target.out_features)
        views[f"{target.name}.weight"] = site.weight[rows]
        if site.bias is not None:
            views[f"{target.name}.bias"] = site.bias[rows]
    return {name: Place(view, tuple(view.shape)) for name, view in views.items()} | _qk_norm_places(tensors, config)


def shard_places(tensors: ModelTensors, config: ModelConfig, shard: Shard) -> dict[str, Place]:
    """The places of a shard's weights. config: the whole model's."""
    result = places(tensors, shard.config)
    tokens = ((shard.tokens.first, shard.tokens.end),)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in result:
            result[name] = Place(result[name].view, (config.vocab_size, config.hidden_size), rows=tokens)
    for whole in lora_targets(config):
        cut, weight, bias = shard.cuts[whole.name], f"{whole.name}.weight", f"{whole.name}.bias"
        shape = (whole.out_features, whole.in_features)
        result[weight] = Place(result[weight].view, shape, rows=cut.outputs, columns=cut.inputs)
        if bias in result:
            result[bias] = Place(result[bias].view, shape[:1], rows=cut.outputs)
    return result


def _qk_norm_places(tensors: ModelTensors, config: ModelConfig) -> dict[str, Place]:
    result: dict[str, Place] = {}
    for layer, norms in enumerate(tensors.layers):
        if norms.qk_norm is not None:
            attention, shape = f"model.layers.{layer}.self_attn", (config.head_dim,)
            result[f"{attention}.q_norm.weight"] = Place(norms.qk_norm[: config.num_heads], shape)
            result[f"{attention}.k_norm.weight"] = Place(norms.qk_norm[config.num_heads :], shape)
    return result


def layer_sites(tensors: ModelTensors, layer: int) -> tuple[Projection, ...]:
    """The projections QKV, OUT, GATE_UP and DOWN of a layer."""
    return tensors.sites[site_of(layer, QKV) : site_of(layer + 1, QKV)]
