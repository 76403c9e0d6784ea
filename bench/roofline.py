"""Roofline: the cost of adapters to a decode step on GPUs, by arithmetic. No figure here was measured on a GPU.

It counts the work in the strip list that TritonLoRA makes of the step: bytes from DRAM (the weights of each adapter in
the batch once; activations are in the cache at decode sizes), bytes from the L2 cache (all that the programs read and
write), and executed flops, rows of padding included. A kernel takes the longest of the three times plus LATENCY. The
base model's step counts by the same rules: its weights, its KV and the latency of its own kernels.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from blora.adapters.layout import GROUP, PIECE_WIDTH, Layout
from blora.adapters.lora import Segment
from blora.adapters.targets import TargetModule
from blora.adapters.triton.sites import Site, lay_out_sites
from blora.adapters.triton.step_table import StepTable, choose_block_rows, make_step_table
from blora.engine.model.targets import SITES_PER_LAYER, lora_targets
from blora.engine.model_files.config import ModelConfig

from .shapes import shape_of
from .table import Cell, format_table, write_json

ITEM_BYTES = 2
BASE_KERNELS = 10  # kernels of a layer: norms, 4 products, RoPE, KV write, attention, gate
# Two assumptions, because every GPU kernel falls short of its limits: the share of bandwidth and flops that it reaches,
# and the seconds between two dependent kernels of a CUDA graph, the time to fill and drain the GPU included.
EFFICIENCY = 0.8
LATENCY = 2.5e-6


@dataclass(frozen=True, slots=True)
class Gpu:
    """Figures from data sheets, in bytes/s and flops/s without sparsity. l2: the rate of reads that hit the cache."""

    dram: float
    l2: float
    tensor_flops: float
    vector_flops: float  # float32


GPUS = {
    "A100": Gpu(dram=2.04e12, l2=5.0e12, tensor_flops=312e12, vector_flops=19.5e12),
    "H100": Gpu(dram=3.35e12, l2=7.0e12, tensor_flops=989e12, vector_flops=67e12),
}
NUM_GPUS = {"llama-7b": 1, "llama-3-8b": 1, "llama-3-70b": 4}


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one kernel."""

    dram_bytes: float
    l2_bytes: float
    flops: float
    on_tensor_cores: bool

    def seconds(self, gpu: Gpu) -> float:
        flops_per_s = gpu.tensor_flops if self.on_tensor_cores else gpu.vector_flops
        limit = max(self.dram_bytes / gpu.dram, self.l2_bytes / gpu.l2, self.flops / flops_per_s)
        return limit / EFFICIENCY + LATENCY


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a step on one of `num_gpus`. dram_bytes, l2_bytes, flops and kernels are those of the adapters."""

    adapters: int  # adapters in the batch
    base_seconds: float
    added_seconds: float
    dram_bytes: float
    l2_bytes: float
    flops: float
    kernels: int

    @property
    def overhead(self) -> float:
        return self.added_seconds / self.base_seconds


def decode_segments(rows: int, adapters: int) -> list[Segment]:
    """Returns segments of rows spread evenly over the adapters, with each adapter's rows together."""
    ends = [rows * (i + 1) // adapters for i in range(adapters)]
    starts = [0, *ends[:-1]]
    uses = ((f"{i}", 1.0) for i in range(adapters))
    return [Segment(start, end, (use,)) for start, end, use in zip(starts, ends, uses, strict=True)]


def kernel_works(site: Site, modules: Sequence[TargetModule], rank: int, step: StepTable, rows: int) -> Iterator[Work]:
    """Yields the work of the kernels shrink and expand at one site. modules: those with LoRA. rows: of the step."""
    ranks, adapters = sum(Layout.GPU.rank_groups(rank)), len(set(_addresses(step)))
    size = step.size
    is_dot, padded_rows, lanes = size.block_rows > 1, size.num_strips * size.block_rows, size.num_groups * GROUP
    a_bytes = sum(ranks * _padded(module.in_features) * ITEM_BYTES for module in modules)
    b_bytes = sum(ranks * _padded(module.out_features) * ITEM_BYTES for module in modules)
    x_bytes = rows * site.in_features * ITEM_BYTES
    y_bytes = 2 * rows * sum(module.out_features for module in modules) * ITEM_BYTES
    h_bytes = size.num_planes(site) * size.num_rows * lanes * 4  # intermediate results of one module
    panels = sum(_padded(module.out_features) // PIECE_WIDTH for module in modules)
    yield Work(
        adapters * a_bytes,
        size.num_uses * a_bytes + x_bytes * len(modules) * size.num_groups + h_bytes * len(modules),
        2 * padded_rows * lanes * sum(_padded(module.in_features) for module in modules),
        is_dot,
    )
    yield Work(
        adapters * b_bytes,
        size.num_uses * b_bytes + y_bytes + h_bytes * panels,
        2 * padded_rows * lanes * sum(_padded(module.out_features) for module in modules),
        is_dot,
    )


def _addresses(step: StepTable) -> Sequence[int]:
    fields: Sequence[int] = step.content[4 : 4 + 5 * step.size.num_uses : 5].tolist()
    return fields


def _padded(features: int) -> int:
    return -(-features // PIECE_WIDTH) * PIECE_WIDTH


def step_cost(
    config: ModelConfig,
    gpu: Gpu,
    num_gpus: int,
    rows: int,
    context: int,
    adapters: int,
    rank: int,
    names: Sequence[str],
) -> Cost:
    """Returns the cost of one step. names: modules with LoRA, such as q_proj. The GPUs share the work evenly, as they
    share columns, rows and heads."""
    segments = decode_segments(rows, adapters)
    digests = {digest for segment in segments for digest, _ in segment.adapters}
    addresses = {digest: index for index, digest in enumerate(digests)}
    step = make_step_table(segments, addresses, -(-rank // GROUP), choose_block_rows(segments))
    works = list(_layer_works(config, num_gpus, rank, names, step, rows))
    layers = config.num_layers
    return Cost(
        adapters=adapters,
        base_seconds=_base_seconds(config, gpu, num_gpus, rows, context),
        added_seconds=layers * sum(work.seconds(gpu) for work in works),
        dram_bytes=layers * sum(work.dram_bytes for work in works),
        l2_bytes=layers * sum(work.l2_bytes for work in works),
        flops=layers * sum(work.flops for work in works),
        kernels=layers * len(works),
    )


def _layer_works(
    config: ModelConfig, num_gpus: int, rank: int, names: Sequence[str], step: StepTable, rows: int
) -> Iterator[Work]:
    layer = [target for target in lora_targets(config) if target.site < SITES_PER_LAYER]
    sites = lay_out_sites(layer, torch.device("cpu")).by_site
    for number, site in sites.items():
        modules = [target for target in layer if target.site == number and target.name.rpartition(".")[2] in names]
        for work in kernel_works(site, modules, rank, step, rows) if modules else ():
            yield Work(
                work.dram_bytes / num_gpus, work.l2_bytes / num_gpus, work.flops / num_gpus, work.on_tensor_cores
            )


def _base_seconds(config: ModelConfig, gpu: Gpu, num_gpus: int, rows: int, context: int) -> float:
    """Returns the seconds of the base model's step. context: tokens of each row. Communication between GPUs is not
    counted, because adapters do not change it."""
    layer = [target for target in lora_targets(config) if target.site < SITES_PER_LAYER]
    num_elements = config.num_layers * sum(target.in_features * target.out_features for target in layer)
    num_elements += config.vocab_size * config.hidden_size
    bytes_read, flops = num_elements * ITEM_BYTES + _kv_bytes(config, context * rows), 2 * num_elements * rows
    limit = max(bytes_read / gpu.dram, flops / gpu.tensor_flops) / num_gpus
    return limit / EFFICIENCY + config.num_layers * BASE_KERNELS * LATENCY


def _kv_bytes(config: ModelConfig, tokens: int) -> int:
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * ITEM_BYTES * tokens


@dataclass(frozen=True, slots=True)
class PrefixCost:
    """KV read by a step whose rows begin with the same prefix, on one of several GPUs. It counts the prefix only, not
    the rows' own tokens."""

    bytes_apart: float  # bytes if each row reads the prefix
    bytes_once: float  # bytes if all rows read it together
    saved_seconds: float  # less the latency of two more kernels in each layer, but not the cost of leaving the graph


def prefix_cost(config: ModelConfig, gpu: Gpu, num_gpus: int, rows: int, prefix: int) -> PrefixCost:
    """Returns the cost for a model without sliding windows. prefix: tokens that all rows share."""
    once = _kv_bytes(config, prefix) / num_gpus
    saved = (rows - 1) * once / gpu.dram / EFFICIENCY - 2 * config.num_layers * LATENCY
    return PrefixCost(rows * once, once, saved)


ALL_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION = ALL_MODULES[:4]

PREFIX = 8192  # tokens that all rows begin with, in the table of shared prefixes

# Published costs of adapters, and the nearest case here. Columns: source, published figure, rank, modules, rows,
# adapters before and after.
PUBLISHED = (
    ("S-LoRA, rank 8 on q k v o, 5 to 100 adapters: 8.05 to 7.99 requests/s", "-1%", 8, ATTENTION, 64, 5, 64),
    ("vLLM #11267, rank 8, base to one adapter: 11.45 to 7.60 requests/s", "-34%", 8, ALL_MODULES, 64, 0, 1),
    ("Punica, rank 16, 32 rows, base to any popularity: +2 ms a token", "+2 ms", 16, ALL_MODULES, 32, 0, 32),
)


def run(args: argparse.Namespace) -> int:
    report = []
    for model in args.shapes:
        config, num_gpus = shape_of(model), NUM_GPUS.get(model, 1)
        for name, gpu in GPUS.items():
            costs = [
                step_cost(config, gpu, num_gpus, args.rows, args.context, adapters, args.rank, ALL_MODULES)
                for adapters in args.adapters
            ]
            print(f"\n{model} on {num_gpus} {name}: {args.rows} rows of {args.context} tokens, rank {args.rank}")
            print(_format(costs))
            report += [{"model": model, "gpu": name, "num_gpus": num_gpus} | asdict(cost) for cost in costs]
    print(f"\nKV that {args.rows} rows read of a prefix of {PREFIX} tokens, each by itself and once for all")
    print(_compare_prefixes(args.shapes, args.rows))
    print("\nPublished figures (Llama-7B, A100), and the expected figure of the nearest case here")
    print(_compare(args.context))
    if args.json is not None:
        options = {"rows": args.rows, "context": args.context, "rank": args.rank}
        write_json(args.json, {**options, "efficiency": EFFICIENCY, "latency": LATENCY, "costs": report})
    return 0


def _format(costs: Sequence[Cost]) -> str:
    header = ("adapters", "base ms", "added ms", "kernels", "DRAM MB", "L2 MB", "GFLOP", "overhead")
    rows: list[list[Cell]] = [
        [
            str(cost.adapters),
            1e3 * cost.base_seconds,
            1e3 * cost.added_seconds,
            cost.kernels,
            cost.dram_bytes / 1e6,
            cost.l2_bytes / 1e6,
            cost.flops / 1e9,
            f"{cost.overhead:.1%}",
        ]
        for cost in costs
    ]
    return format_table(header, rows)


def _compare_prefixes(models: Sequence[str], rows: int) -> str:
    lines: list[list[Cell]] = []
    for model in models:
        num_gpus = NUM_GPUS.get(model, 1)
        for name, gpu in GPUS.items():
            cost = prefix_cost(shape_of(model), gpu, num_gpus, rows, PREFIX)
            case = f"{model} on {num_gpus} {name}"
            lines.append([case, cost.bytes_apart / 1e9, cost.bytes_once / 1e9, 1e3 * cost.saved_seconds])
    return format_table(("case", "each GB", "once GB", "saved ms"), lines)


def _compare(context: int) -> str:
    config, gpu = shape_of("llama-7b"), GPUS["A100"]
    lines: list[list[Cell]] = []
    for source, theirs, rank, names, rows, few, many in PUBLISHED:

        def seconds(adapters: int, rank: int = rank, names: Sequence[str] = names, rows: int = rows) -> float:
            if not adapters:
                return _base_seconds(config, gpu, 1, rows, context)
            cost = step_cost(config, gpu, 1, rows, context, adapters, rank, names)
            return cost.base_seconds + cost.added_seconds

        before, after = seconds(few), seconds(many)
        ours = f"{1e3 * (after - before):+.2f} ms" if "ms" in theirs else f"{before / after - 1:.0%}"
        lines.append([source, theirs, ours, f"{few} to {many} adapters in {rows} rows"])
    return format_table(("source", "theirs", "here", "case"), lines)
