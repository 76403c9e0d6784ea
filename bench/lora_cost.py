"""What adapters add to the linears of a step: all linears of a stack of layers, with a LoRA plan and without, in turns.

The stack's weights and the adapters are distinct memory and larger than the caches together, so that adapters come from
DRAM, as in a step of a real model. Limit, as the project sets it: LIMIT times the larger of (time to stream the
adapters' bytes, time of their flops at the rate of our own GEMM), plus REGION_SECONDS for each parallel region.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from blora.adapters.checkpoint import Array, Checkpoint, LoRAModule
from blora.adapters.cpu import CpuLoRA, CpuLoRAMetadata
from blora.adapters.device_pool import DevicePool
from blora.adapters.image import AdapterImage, pack
from blora.adapters.lora import Segment
from blora.adapters.targets import TargetModule
from blora.engine.arena import Arena, KVLayout, page_bytes_for
from blora.engine.kernels.library import Epilogue, Kernels, PackedLinear
from blora.engine.model.config import ModelConfig
from blora.engine.model.targets import DOWN, GATE_UP, OUT, QKV, SITES_PER_LAYER, lora_targets
from blora.engine.model.weights import allocate

from .limits import Limits, repeat, timed
from .random_adapters import ALL_MODULES

LIMIT = 1.6
REGION_SECONDS = 3e-6
EPILOGUES = {QKV: Epilogue.STORE, OUT: Epilogue.ADD, GATE_UP: Epilogue.SILU_MUL, DOWN: Epilogue.ADD}
BLOCK_SIZE = 16  # tokens; decides the arena's page, into which adapters are packed


@dataclass(frozen=True, slots=True)
class Case:
    rows: int
    adapters: int  # over which the rows are spread evenly
    rank: int
    modules: tuple[str, ...] = ALL_MODULES


@dataclass(frozen=True, slots=True)
class Cost:
    """Times in seconds, for all layers together."""

    base: float
    added: float  # by the adapters
    reading: float  # of the adapters' bytes, at the machine's streaming rate
    computing: float  # of their flops, at the rate of our own GEMM
    regions: float  # what entering parallel regions may cost

    @property
    def ratio(self) -> float:
        """The added time without the regions' share, over the larger limit; at most LIMIT is wanted."""
        return (self.added - self.regions) / max(self.reading, self.computing)

    @property
    def share_of_base_speed(self) -> float:
        return self.base / (self.base + self.added)

    def report(self) -> dict[str, float]:
        return {**asdict(self), "ratio": self.ratio, "share_of_base_speed": self.share_of_base_speed}


class LinearStack:
    """The packed linears of all layers of a model of random weights, and inputs for them."""

    def __init__(self, kernels: Kernels, config: ModelConfig, max_rows: int) -> None:
        self.config = config
        self.targets = lora_targets(config)
        self._kernels = kernels
        weights = allocate(config, torch.bfloat16)
        some = torch.randn(1 << 20).bfloat16()
        self._linears: list[PackedLinear] = []
        for site, projection in enumerate(weights.sites):
            weight = projection.weight
            weight.copy_(_repeated(some, weight.numel()).view(weight.shape) / weight.shape[1] ** 0.5)
            self._linears.append(kernels.pack_linear(weight, None, site))
        first = [linear.layer for linear in self._linears[:SITES_PER_LAYER]]
        self._inputs = [torch.randn(max_rows, layer.in_).bfloat16() for layer in first]
        self._outputs = [
            torch.zeros(max_rows, layer.out // (2 if site == GATE_UP else 1), dtype=torch.bfloat16)
            for site, layer in enumerate(first)
        ]

    def run(self, rows: int, lora: CpuLoRAMetadata | None) -> None:
        inputs, outputs = [x[:rows] for x in self._inputs], [y[:rows] for y in self._outputs]
        for index, linear in enumerate(self._linears):
            site = index % SITES_PER_LAYER
            self._kernels.linear(linear, inputs[site], outputs[site], EPILOGUES[site], lora)


def _repeated(values: Tensor, count: int) -> Tensor:
    return values.repeat(-(-count // len(values)))[:count]


def standard_cases(ranks: Sequence[int], rows: Sequence[int] = (1, 16, 64)) -> Iterator[Case]:
    """1, 8 and 64 adapters where there are as many rows, of each rank on all modules; and small ones on q and v."""
    for rank in ranks:
        for count in rows:
            for adapters in (1, 8, 64):
                if adapters <= count:
                    yield Case(count, adapters, rank)
    yield Case(max(rows), max(rows), 8, ("q_proj", "v_proj"))


def measure_cost(stack: LinearStack, case: Case, limits: Limits, seconds: float) -> Cost:
    targets = [target for target in stack.targets if target.name.rpartition(".")[2] in case.modules]
    adapters = ResidentAdapters(stack.config, targets, case)
    metadata = adapters.plan(case)
    stack.run(case.rows, metadata)
    pairs: list[tuple[float, float]] = []

    def pair() -> float:
        base = timed(lambda: stack.run(case.rows, None))
        pairs.append((base, timed(lambda: stack.run(case.rows, metadata)) - base))
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
    """Adapters of one rank in an arena of their own, each in its own pages."""

    def __init__(self, config: ModelConfig, targets: Sequence[TargetModule], case: Case) -> None:
        layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, torch.bfloat16)
        page_bytes = page_bytes_for(layout, 2 * max(target.in_features for target in targets))
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
        """Good as long as this object lives."""
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
