"""The same random model on the native kernels and in plain torch, with an adapter on every module."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from blora.adapters import Checkpoint, pack
from blora.adapters.cpu import CpuLoRA
from blora.adapters.device_pool import DevicePool
from blora.adapters.image import LARGEST_PIECE, AdapterImage
from blora.adapters.lora import LoRAPlanner, Segment
from blora.adapters.peft.checkpoint import LoRAModule
from blora.adapters.reference import ReferenceLoRA
from blora.engine.attention.base import AttentionPlanner, PagedRows
from blora.engine.attention.cpu import CpuAttention
from blora.engine.attention.reference import ReferenceAttention
from blora.engine.cpu.decoder import CpuCausalLM
from blora.engine.kernels.library import Kernels
from blora.engine.memory.arena import Arena, KVLayout
from blora.engine.memory.page_size import page_bytes_for
from blora.engine.model.batch import ForwardBatch
from blora.engine.model.decoder import CausalLM
from blora.engine.model.ops import TorchOps
from blora.engine.model.rope import rope_cache
from blora.engine.model.targets import SITES_PER_LAYER, lora_targets
from blora.engine.model.tensors import ModelTensors, allocate, places
from blora.engine.model_files.config import ModelConfig

from .attention_world import Shape, make_arena

LENGTHS = [5, 1, 40]
BLOCK = 8
MAX_LENGTH = 64  # tokens of a sequence
KV_PAGES = 20  # the adapter's pages follow


def make_config(**fields: object) -> ModelConfig:
    defaults = {"vocab_size": 50, "hidden_size": 36, "intermediate_size": 64, "max_position_embeddings": MAX_LENGTH}
    return replace(Shape().config, **{**defaults, "tie_word_embeddings": False, **fields})  # type: ignore[arg-type]


def make_weights(config: ModelConfig, dtype: torch.dtype) -> ModelTensors:
    torch.manual_seed(0)
    tensors = allocate(config, dtype)
    for name, place in places(tensors, config).items():
        is_norm = "norm" in name
        place.view.copy_(torch.randn(place.shape) * 0.1 + 1 if is_norm else torch.randn(place.shape) * 0.2)
    return tensors


def make_image(config: ModelConfig, dtype: torch.dtype, page_bytes: int) -> AdapterImage:
    """An adapter on every module, each with another rank."""
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

    def __init__(
        self, kernels: Kernels, config: ModelConfig, dtype: torch.dtype, lengths: Sequence[int] = LENGTHS
    ) -> None:
        """lengths: the tokens of each sequence. One step computes all of them."""
        tensors = make_weights(config, dtype)
        self.config, self.dtype, self.kernels, self.lengths = config, dtype, kernels, lengths
        self._make_plain(copy.deepcopy(tensors))
        self._make_native(tensors)

    def _make_arena(self) -> tuple[Arena, DevicePool]:
        config = self.config
        layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK, self.dtype)
        page_bytes = page_bytes_for(layout.block_bytes, LARGEST_PIECE)
        image = make_image(config, self.dtype, page_bytes)
        arena = make_arena(layout, KV_PAGES + image.table.num_pages, page_bytes)
        pool = DevicePool(arena.pages, self.dtype)
        pool.add(image.table, torch.from_numpy(image.pages))
        self.adapter_pages = {"a": list(range(KV_PAGES, KV_PAGES + image.table.num_pages))[::-1]}
        pool.copy("a", 0, self.adapter_pages["a"])
        return arena, pool

    def _make_plain(self, tensors: ModelTensors) -> None:
        arena, pool = self._make_arena()
        attention = ReferenceAttention(arena, self.config.num_heads, self.config.head_dim**-0.5)
        lora = ReferenceLoRA(pool)
        self.plain = CausalLM(self.config, tensors, attention, lora, TorchOps(self.config))
        self.plain_planners = attention, lora

    def _make_native(self, tensors: ModelTensors) -> None:
        arena, pool = self._make_arena()
        config = self.config
        cos, sin = rope_cache(config.rope, config.head_dim, config.max_position_embeddings)
        norms = [layer.qk_norm for layer in tensors.layers if layer.qk_norm is not None]
        attention = CpuAttention(self.kernels, arena, config, cos, sin, norms)
        lora = CpuLoRA(pool, config.num_layers * SITES_PER_LAYER)
        self.native, self.native_planners = CpuCausalLM(self.kernels, config, tensors, attention), (attention, lora)

    def batch(
        self,
        planners: tuple[AttentionPlanner, LoRAPlanner],
        segments: Sequence[Segment],
        num_tokens: int | None = None,
    ) -> ForwardBatch:
        """num_tokens: the length of token_ids; None: as many as the plan has. Another number is an error."""
        num_tokens = sum(self.lengths) if num_tokens is None else num_tokens
        generator = torch.Generator().manual_seed(1)
        tables, first = [], 0
        for length in self.lengths:
            tables.append(list(range(first, first + -(-length // BLOCK)))[::-1])
            first += len(tables[-1])
        attention, lora = planners
        return ForwardBatch(
            token_ids=torch.randint(self.config.vocab_size, (num_tokens,), generator=generator),
            positions=torch.cat([torch.arange(length) for length in self.lengths]),
            logits_at=torch.tensor([0]),
            attention=attention.plan(PagedRows(self.lengths, self.lengths, tables)),
            lora=lora.plan(segments, self.adapter_pages) if segments else None,
        )

    def native_logits(self, segments: Sequence[Segment]) -> Tensor:
        return self.native.compute_logits(self.native.forward(self.batch(self.native_planners, segments)))

    def plain_logits(self, segments: Sequence[Segment]) -> Tensor:
        return self.plain.compute_logits(self.plain.forward(self.batch(self.plain_planners, segments)))
