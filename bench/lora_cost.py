"""The cost of adapters in the linears of a step: all layers by the native decoder, with and without LoRA, in turns.

The weights of the stack and the adapters together are larger than the caches, so that adapters come from DRAM, as in a
step of a real model. The project's limit is LIMIT times the larger of (time to stream the adapters' bytes, time of
their flops at the rate of blora's own GEMM), plus REGION_SECONDS for each parallel region.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from blora.adapters.cpu import CpuLoRA, CpuLoRAMetadata
from blora.adapters.device_pool import DevicePool
from blora.adapters.image import LARGEST_PIECE, AdapterImage, pack
from blora.adapters.lora import Segment
from blora.adapters.lora_module import Array, LoRAModule
from blora.adapters.peft.checkpoint import Checkpoint
from blora.adapters.targets import TargetModule
from blora.engine.attention.base import PagedRows
from blora.engine.attention.cpu import CpuAttention
from blora.engine.cpu.decoder import CpuCausalLM
from blora.engine.kernels.library import Kernels
from blora.engine.memory.arena import Arena, KVLayout
from blora.engine.memory.page_size import page_bytes_for
from blora.engine.model.batch import ForwardBatch
from blora.engine.model.rope import rope_cache
from blora.engine.model.targets import SITES_PER_LAYER, lora_targets
from blora.engine.model.tensors import ModelTensors, allocate
from blora.engine.model_files.config import ModelConfig

from .limits import Limits, repeat
from .random_adapters import ALL_MODULES

LIMIT = 1.6
REGION_SECONDS = 3e-6
BLOCK_SIZE = 16  # tokens; decides the size of the arena's pages, for which adapters are packed


@dataclass(frozen=True, slots=True)
class Case:
    rows: int
    adapters: int  # the rows are spread evenly over them
    rank: int
    modules: tuple[str, ...] = ALL_MODULES


@dataclass(frozen=True, slots=True)
class Cost:
    """Times in seconds, for all layers together."""

    base: float
    added: float  # time that the adapters add
    reading: float  # time to read the adapters' bytes, at the machine's streaming rate
    computing: float  # time of their flops, at the rate of blora's own GEMM
    regions: float  # time that entering parallel regions may take

    @property
    def ratio(self) -> float:
        """The added time without `regions`, over the larger of `reading` and `computing`; the goal is at most LIMIT."""
        return (self.added - self.regions) / max(self.reading, self.computing)

    @property
    def share_of_base_speed(self) -> float:
        return self.base / (self.base + self.added)

    def report(self) -> dict[str, float]:
        return {**asdict(self), "ratio": self.ratio, "share_of_base_speed": self.share_of_base_speed}


class DecoderStack:
    """All layers of a model of random weights, run by the native decoder, which measures the time of its linears. Each
    row is the first token of its sequence, so that attention has little to do."""

    def __init__(self, kernels: Kernels, config: ModelConfig, max_rows: int) -> None:
        self.config = config
        self.targets = lora_targets(config)
        self._kernels = kernels
        layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, torch.bfloat16)
        arena = Arena(layout, max_rows, page_bytes_for(layout.block_bytes, LARGEST_PIECE))
        cos, sin = rope_cache(config.rope, config.head_dim, BLOCK_SIZE)
        self._attention = CpuAttention(kernels, arena, config, cos, sin, ())
        self._model = CpuCausalLM(kernels, config, _random_weights(config), self._attention)

    def run(self, rows: int, lora: CpuLoRAMetadata | None) -> float:
        """Returns the seconds that the linears took."""
        self._kernels.seconds = seconds = torch.zeros(3, dtype=torch.float64)
        self._model.forward(self._batch(rows, lora))
        self._kernels.seconds = None
        return float(seconds[0])

    def _batch(self, rows: int, lora: CpuLoRAMetadata | None) -> ForwardBatch:
        tables = [[row] for row in range(rows)]
        return ForwardBatch(
            token_ids=torch.arange(rows),
            positions=torch.zeros(rows, dtype=torch.int64),
            logits_at=torch.arange(rows),
            attention=self._attention.plan(PagedRows([1] * rows, [1] * rows, tables)),
            lora=lora,
        )


def _random_weights(config: ModelConfig) -> ModelTensors:
    tensors = allocate(config, torch.bfloat16)
    some = torch.randn(1 << 20).bfloat16()
    for matrix in {tensors.embedding, tensors.lm_head, *(projection.weight for projection in tensors.sites)}:
        matrix.copy_(_repeated(some, matrix.numel()).view(matrix.shape) / matrix.shape[1] ** 0.5)
    for norm in (
        tensors.norm,
        *(norm for layer in tensors.layers for norm in (layer.input_norm, layer.post_attention_norm)),
    ):
        norm.fill_(1)
    return tensors


def _repeated(values: Tensor, count: int) -> Tensor:
    return values.repeat(-(-count // len(values)))[:count]


def standard_cases(ranks: Sequence[int], rows: Sequence[int] = (1, 16, 64)) -> Iterator[Case]:
    """Yields cases of 1, 8 and 64 adapters, but no more than rows, of each rank on all modules; then one of small
    adapters on q and v."""
    for rank in ranks:
        for count in rows:
            for adapters in (1, 8, 64):
                if adapters <= count:
                    yield Case(count, adapters, rank)
    yield Case(max(rows), max(rows), 8, ("q_proj", "v_proj"))


def measure_cost(stack: DecoderStack, case: Case, limits: Limits, seconds: float) -> Cost:
    targets = [target for target in stack.targets if target.name.rpartition(".")[2] in case.modules]
    adapters = ResidentAdapters(stack.config, targets, case)
    metadata = adapters.plan(case)
    stack.run(case.rows, metadata)
    pairs: list[tuple[float, float]] = []

    def pair() -> float:
        base = stack.run(case.rows, None)
        pairs.append((base, stack.run(case.rows, metadata) - base))
        return base

    repeat(pair, seconds)
    num_elements = case.rank * sum(target.in_features + target.out_features for target in targets)
    return Cost(
        base=statistics.median(base for base, _ in pairs),
        added=statistics.median(added for _, added in pairs),
        reading=case.adapters * num_elements * torch.bfloat16.itemsize / limits.bytes_per_s,
        computing=2 * case.rows * num_elements / limits.flops_per_s,
        regions=REGION_SECONDS * len({target.site for target in targets}),
    )


class ResidentAdapters:
    """Adapters of one rank in their own arena, each in its own pages."""

    def __init__(self, config: ModelConfig, targets: Sequence[TargetModule], case: Case) -> None:
        layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, torch.bfloat16)
        page_bytes = page_bytes_for(layout.block_bytes, LARGEST_PIECE)
        image = _random_image(targets, case.rank, page_bytes)
        num_pages = image.table.num_pages
        self._arena = Arena(layout, num_pages * case.adapters, page_bytes)
        self._pool = DevicePool(self._arena.pages, torch.bfloat16)
        self._lora = CpuLoRA(self._pool, config.num_layers * SITES_PER_LAYER)
        self._pages: dict[str, list[int]] = {}
        for index in range(case.adapters):
            digest = str(index)
            self._pages[digest] = list(range(index * num_pages, (index + 1) * num_pages))
            self._pool.add(replace(image.table, digest=digest), torch.from_numpy(image.pages))
            self._pool.copy(digest, 0, self._pages[digest])

    def plan(self, case: Case) -> CpuLoRAMetadata:
        """Returns the plan of a step, which is valid while this object lives."""
        bounds = [case.rows * index // case.adapters for index in range(case.adapters + 1)]
        segments = [
            Segment(bounds[index], bounds[index + 1], ((digest, 1.0),)) for index, digest in enumerate(self._pages)
        ]
        return self._lora.plan(segments, self._pages)


def _random_image(targets: Sequence[TargetModule], rank: int, page_bytes: int) -> AdapterImage:
    random = np.random.default_rng(rank)

    def matrix(rows: int, columns: int) -> Array:
        return random.standard_normal((rows, columns), np.float32) * np.float32(0.1 * columns**-0.5)

    modules = tuple(
        LoRAModule(target, 1.0, matrix(rank, target.in_features), matrix(target.out_features, rank))
        for target in targets
    )
    return pack(Checkpoint("", "", modules, ()), "bfloat16", page_bytes)
