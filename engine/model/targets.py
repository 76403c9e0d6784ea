"""The modules of a model that LoRA can change: their names, shapes and sites. Imports no torch."""

from collections.abc import Iterator

from blora.adapters.targets import TargetKind, TargetModule

from ..model_files.config import ModelConfig

SITES_PER_LAYER = 4
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
QKV, OUT, GATE_UP, DOWN = range(SITES_PER_LAYER)
NORMS_PER_LAYER = 4
INPUT_NORM, POST_ATTENTION_NORM, Q_NORM, K_NORM = range(NORMS_PER_LAYER)


def site_of(layer: int, projection: int) -> int:
    """The site of a layer's projection. projection: QKV, OUT, GATE_UP or DOWN."""
    return layer * SITES_PER_LAYER + projection


def head_site(num_layers: int) -> int:
    return site_of(num_layers, 0)


def embedding_site(num_layers: int) -> int:
    return head_site(num_layers) + 1


def num_sites(num_layers: int) -> int:
    """The number of sites without those of norms: those of the layers, the head's and the embedding's."""
    return embedding_site(num_layers) + 1


def norm_site(num_layers: int, layer: int, norm: int) -> int:
    """The site of a layer's norm, behind all others. norm: INPUT_NORM, POST_ATTENTION_NORM, Q_NORM or K_NORM."""
    return num_sites(num_layers) + layer * NORMS_PER_LAYER + norm


def last_norm_site(num_layers: int) -> int:
    return norm_site(num_layers, num_layers, INPUT_NORM)


def adapter_targets(config: ModelConfig) -> tuple[TargetModule, ...]:
    """All modules that an adapter can change: the linear modules of all layers, the head, the embedding, the norms."""
    hidden, vocab, num_layers = config.hidden_size, config.vocab_size, config.num_layers
    tied_to = EMBEDDING if config.tie_word_embeddings else None
    head = TargetModule(HEAD, hidden, vocab, head_site(num_layers), 0, kind=TargetKind.HEAD, tied_to=tied_to)
    embedding = TargetModule(EMBEDDING, vocab, hidden, embedding_site(num_layers), 0, kind=TargetKind.EMBEDDING)
    return (*lora_targets(config), head, embedding, *_norm_targets(config))


def lora_targets(config: ModelConfig) -> tuple[TargetModule, ...]:
    """The linear modules of all layers, layer by layer, in the order of the fused outputs."""
    return tuple(target for layer in range(config.num_layers) for target in _layer_targets(config, layer))


def _norm_targets(config: ModelConfig) -> Iterator[TargetModule]:
    """The norms, which an adapter can replace."""

    def target(name: str, width: int, site: int) -> TargetModule:
        return TargetModule(name, width, width, site, 0, kind=TargetKind.NORM)

    hidden, num_layers = config.hidden_size, config.num_layers
    for layer in range(num_layers):
        of_layer = f"model.layers.{layer}"
        yield target(f"{of_layer}.input_layernorm", hidden, norm_site(num_layers, layer, INPUT_NORM))
        site = norm_site(num_layers, layer, POST_ATTENTION_NORM)
        yield target(f"{of_layer}.post_attention_layernorm", hidden, site)
        if config.qk_norm:
            for name, norm in (("q_norm", Q_NORM), ("k_norm", K_NORM)):
                site = norm_site(num_layers, layer, norm)
                yield target(f"{of_layer}.self_attn.{name}", config.head_dim, site)
    yield target("model.norm", hidden, last_norm_site(num_layers))


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
