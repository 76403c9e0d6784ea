"""All layers in one native call against the plain decoder, on every build; and what is refused before it."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from kernel_cases.attention_world import Shape, make_arena
from torch import Tensor

from blora.adapters import Checkpoint, pack
from blora.adapters.checkpoint import LoRAModule
from blora.adapters.cpu import CpuLoRA
from blora.adapters.device_pool import DevicePool
from blora.adapters.image import LARGEST_PIECE, AdapterImage
from blora.adapters.lora import LoRAPlanner, Segment
from blora.adapters.reference import ReferenceLoRA
from blora.engine.arena import Arena, KVLayout
from blora.engine.attention.base import AttentionPlanner, PagedRows
from blora.engine.attention.cpu import CpuAttention
from blora.engine.attention.reference import ReferenceAttention
from blora.engine.inputs import ForwardBatch
from blora.engine.kernels.decoder import CpuCausalLM
from blora.engine.kernels.library import Kernels
from blora.engine.model.config import ModelConfig
from blora.engine.model.decoder import CausalLM
from blora.engine.model.rope import rope_cache
from blora.engine.model.targets import SITES_PER_LAYER, lora_targets
from blora.engine.model.weights import ModelWeights, allocate, places
from blora.engine.page_size import page_bytes_for

LENGTHS = [5, 1, 40]
LORA = (Segment(0, 4, (("a", 1.0),)), Segment(9, 40, (("a", -0.5),)))  # across rows; tokens without adapters between
BLOCK = 8
KV_PAGES, PAGES = 20, 200  # the adapter stands behind the KV

CONFIGS = {
    "llama": {},
    "odd gates": {"intermediate_size": 72},  # gate and up are no whole panels
    "biases, norms": {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "qk_norm": True},
    "tied, window": {"tie_word_embeddings": True, "sliding_windows": (None, 7)},
}


def make_config(**fields: object) -> ModelConfig:
    defaults = {"vocab_size": 50, "hidden_size": 36, "intermediate_size": 64, "max_position_embeddings": max(LENGTHS)}
    return replace(Shape().config, **{**defaults, "tie_word_embeddings": False, **fields})  # type: ignore[arg-type]


def make_weights(config: ModelConfig, dtype: torch.dtype) -> ModelWeights:
    torch.manual_seed(0)
    weights = allocate(config, dtype)
    for name, place in places(weights, config).items():
        is_norm = "norm" in name
        place.view.copy_(torch.randn(place.shape) * 0.1 + 1 if is_norm else torch.randn(place.shape) * 0.2)
    return weights


def make_image(config: ModelConfig, dtype: torch.dtype, page_bytes: int) -> AdapterImage:
    """An adapter on every module, of another rank each."""
    rng = np.random.default_rng(0)
    modules = []
    for number, target in enumerate(lora_targets(config)):
        rank = 1 + 3 * number % 20
        a = rng.standard_normal((rank, target.in_features), dtype=np.float32) * 0.2
        b = rng.standard_normal((target.out_features, rank), dtype=np.float32) * 0.2
        modules.append(LoRAModule(target, 0.5, a, b))
    return pack(Checkpoint("", "a", tuple(modules), ()), str(dtype).removeprefix("torch."), page_bytes)


class Decoders:
    """The same weights in both decoders, each with an arena of its own."""

    def __init__(self, kernels: Kernels, config: ModelConfig, dtype: torch.dtype) -> None:
        weights = make_weights(config, dtype)
        self.config, self.dtype, self.kernels = config, dtype, kernels
        self._make_plain(copy.deepcopy(weights))
        self._make_native(weights)

    def _make_arena(self) -> tuple[Arena, DevicePool]:
        config = self.config
        layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK, self.dtype)
        arena = make_arena(layout, PAGES, page_bytes_for(layout.block_bytes, LARGEST_PIECE))
        pool = DevicePool(arena.pages, self.dtype)
        image = make_image(config, self.dtype, arena.page_bytes)
        pool.add(image.table, torch.from_numpy(image.pages))
        self.adapter_pages = {"a": list(range(KV_PAGES, KV_PAGES + image.table.num_pages))[::-1]}
        pool.copy("a", 0, self.adapter_pages["a"])
        return arena, pool

    def _make_plain(self, weights: ModelWeights) -> None:
        arena, pool = self._make_arena()
        attention = ReferenceAttention(arena, self.config.num_heads, self.config.head_dim**-0.5)
        lora = ReferenceLoRA(pool)
        self.plain, self.plain_planners = CausalLM(self.config, weights, attention, lora), (attention, lora)

    def _make_native(self, weights: ModelWeights) -> None:
        arena, pool = self._make_arena()
        config = self.config
        cos, sin = rope_cache(config.rope, config.head_dim, config.max_position_embeddings)
        norms = [layer.qk_norm for layer in weights.layers if layer.qk_norm is not None]
        attention = CpuAttention(self.kernels, arena, config, cos, sin, norms)
        lora = CpuLoRA(pool, config.num_layers * SITES_PER_LAYER)
        self.native, self.native_planners = CpuCausalLM(self.kernels, config, weights, attention), (attention, lora)

    def batch(
        self,
        planners: tuple[AttentionPlanner, LoRAPlanner],
        segments: Sequence[Segment],
        num_tokens: int = sum(LENGTHS),
    ) -> ForwardBatch:
        """num_tokens: of token_ids, all that is planned for unless it is to be wrong."""
        generator = torch.Generator().manual_seed(1)
        tables, first = [], 0
        for length in LENGTHS:
            tables.append(list(range(first, first + -(-length // BLOCK)))[::-1])
            first += len(tables[-1])
        attention, lora = planners
        return ForwardBatch(
            token_ids=torch.randint(self.config.vocab_size, (num_tokens,), generator=generator),
            positions=torch.cat([torch.arange(length) for length in LENGTHS]),
            logits_at=torch.tensor([0]),
            attention=attention.plan(PagedRows(LENGTHS, LENGTHS, tables)),
            lora=lora.plan(segments, self.adapter_pages) if segments else None,
        )

    def native_logits(self, segments: Sequence[Segment]) -> Tensor:
        return self.native.compute_logits(self.native.forward(self.batch(self.native_planners, segments)))

    def plain_logits(self, segments: Sequence[Segment]) -> Tensor:
        return self.plain.compute_logits(self.plain.forward(self.batch(self.plain_planners, segments)))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("segments", [(), LORA], ids=["base", "adapters"])
def test_equals_the_plain_decoder(
    kernels: Kernels, dtype: torch.dtype, num_threads: int, name: str, segments: Sequence[Segment]
) -> None:
    assert torch.get_num_threads() == num_threads
    decoders = Decoders(kernels, make_config(**CONFIGS[name]), dtype)
    expected = decoders.plain_logits(segments)
    allowed = 0.1 if dtype == torch.bfloat16 else 1e-4  # by the size of all: bfloat16 rounds at many places
    error = (decoders.native_logits(segments) - expected).norm() / expected.norm()
    assert error < allowed, error


def test_base_rows_have_the_same_bits_beside_adapters(kernels: Kernels, dtype: torch.dtype, num_threads: int) -> None:
    """The first row is changed in part, the second not at all; of the third, what is after a changed token is."""
    assert torch.get_num_threads() == num_threads
    decoders = Decoders(kernels, make_config(), dtype)
    base, mixed = decoders.native_logits(()), decoders.native_logits(LORA)
    is_same = (base == mixed).all(dim=1)
    assert is_same.nonzero().flatten().tolist() == [5, 6, 7, 8]


def test_steps_that_do_not_belong_together_are_refused(kernels: Kernels) -> None:
    decoders = Decoders(kernels, make_config(), torch.float32)
    attention, _ = decoders.native_planners
    with pytest.raises(ValueError, match="^hidden: "):
        decoders.native.forward(decoders.batch(decoders.native_planners, (), sum(LENGTHS) - 1))
    with pytest.raises(TypeError, match="another backend"):
        decoders.native.forward(decoders.batch(decoders.plain_planners, ()))
    with pytest.raises(TypeError, match="another backend"):
        decoders.native.forward(decoders.batch((attention, decoders.plain_planners[1]), LORA))
    with pytest.raises(ValueError, match="^lora: "):
        decoders.native.forward(decoders.batch(decoders.native_planners, [Segment(0, 47, (("a", 1.0),))]))
