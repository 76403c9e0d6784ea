"""The modules of a model that LoRA can change: their names, shapes and sites. Imports no torch."""

from collections.abc import Iterator

from blora.adapters.targets import TargetKind, TargetModule

from ..model_files.config import ModelConfig

SITES_PER_LAYER = 4
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
QKV, OUT, GATE_UP, DOWN = range(SITES_PER_LAYER)


def site_of(layer: int, projection: int) -> int:
    """The site of a layer's projection. projection: QKV, OUT, GATE_UP or DOWN."""
    return layer * SITES_PER_LAYER + projection


def head_site(num_layers: int) -> int:
    return site_of(num_layers, 0)


def embedding_site(num_layers: int) -> int:
    return head_site(num_layers) + 1


def num_sites(num_layers: int) -> int:
    """The number of sites: those of the layers, the head's and the embedding's."""
    return embedding_site(num_layers) + 1


def adapter_targets(config: ModelConfig) -> tuple[TargetModule, ...]:
    """All modules that an adapter can change: the linear modules of all layers, the head, the embedding."""
    hidden, vocab, num_layers = config.hidden_size, config.vocab_size, config.num_layers
    tied_to = EMBEDDING if config.tie_word_embeddings else None
    head = TargetModule(HEAD, hidden, vocab, head_site(num_layers), 0, kind=TargetKind.HEAD, tied_to=tied_to)
    embedding = TargetModule(EMBEDDING, vocab, hidden, embedding_site(num_layers), 0, kind=TargetKind.EMBEDDING)
    return (*lora_targets(config), head, embedding)


def lora_targets(config: ModelConfig) -> tuple[TargetModule, ...]:
    """The linear modules of all layers, layer by layer, in the order of the fused outputs."""
    return tuple(target for layer in range(config.num_layers) for target in _layer_targets(config, layer))


def _layer_targets(config: ModelConfig, layer: int) -> Iterator[TargetModule]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
    qkv, gate_up = site_of(layer, QKV), site_of(layer, GATE_UP)
    yield TargetModule(f"{attention}.q_proj", hidden, q, qkv, 0, config.qkv_bias)
    yield TargetModule(f"{attention}.k_proj", hidden, kv, qkv, q, config.qkv_bias)
    yield TargetModule(f"{attention}.v_proj", hidden, kv, qkv, q + kv, config.qkv_bias)
    yield TargetModule(f"{attention}.o_proj", q, hidden, site_of(layer, OUT), 0, config.o_bias)
    yield TargetModule(f"{mlp}.gate_proj", hidden, intermediate, gate_up, 0, config.mlp_bias)
    yield TargetModule(f"{mlp}.up_proj", hidden, intermediate, gate_up, intermediate, config.mlp_bias)
    yield TargetModule(f"{mlp}.down_proj", intermediate, hidden, site_of(layer, DOWN), 0, config.mlp_bias)
