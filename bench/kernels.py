"""Times of each native kernel against the limits of this machine, at the shapes of real models, in bfloat16.

A call on few rows is limited by reading (GB/s), one on many rows by computing (GFLOP/s). Its limit is the larger of the
two times, at the rates that `limits.py` measures in between. Weights and KV cycle through more memory than the caches
hold.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from blora.engine.kernels.library import Epilogue, Kernels, load_kernels
from blora.engine.model.targets import DOWN, GATE_UP, OUT, QKV, SITES_PER_LAYER, lora_targets
from blora.engine.model_files.config import ModelConfig
from blora.engine.startup.cores import choose_num_threads

from . import machine
from .attention_cost import MAX_LAYER_BYTES, AttentionRows, attention_flops, layer_bytes
from .limits import LimitMeter, Limits, median_seconds
from .lora_cost import Case, Cost, DecoderStack, measure_cost, standard_cases
from .neighbours import Neighbours
from .random_adapters import ALL_MODULES
from .shapes import shape_of, with_layers
from .table import Cell, format_table, write_json

WEIGHT_BYTES = 256 << 20  # copies of one weight together
SITES = ("qkv", "o", "gate_up", "down")
EPILOGUES = {QKV: Epilogue.STORE, OUT: Epilogue.ADD, GATE_UP: Epilogue.SILU_MUL, DOWN: Epilogue.ADD}
DECODE = ((1, 128), (1, 1024), (1, 4096), (16, 128), (16, 1024), (16, 4096), (64, 128), (64, 1024), (64, 4096))
PREFILL = (128, 512, 2048)
DISTURBED = "others' cores"  # the column of cores that other processes kept busy; measure such a figure again
STACK_BYTES = 2 << 30  # weights of a LoRA stack, which has fewer layers than a large model
LARGE_CASES = (Case(1, 1, 16), Case(16, 8, 16), Case(64, 8, 16), Case(64, 64, 16))


@dataclass(frozen=True, slots=True)
class Measured:
    """One call of one kernel."""

    kernel: str
    shape: str
    seconds: float
    num_bytes: int  # bytes that it has to read
    num_flops: int

    def report(self, limits: Limits) -> dict[str, Any]:
        return {
            "kernel": self.kernel,
            "shape": self.shape,
            "us": self.seconds * 1e6,
            "gb_per_s": self.num_bytes / self.seconds / 1e9,
            "gflop_per_s": self.num_flops / self.seconds / 1e9,
            "limit_gb_per_s": limits.bytes_per_s / 1e9,
            "limit_gflop_per_s": limits.flops_per_s / 1e9,
            "times_limit": self.seconds / limits.seconds(self.num_bytes, self.num_flops),
        }


def run(args: argparse.Namespace) -> int:
    kernels = load_kernels(args.instruction_set)
    if kernels is None:
        raise ValueError("there are no native kernels to measure: they were not built")
    torch.set_num_threads(choose_num_threads(args.threads, 1))
    kernels.num_threads = torch.get_num_threads()
    meter = LimitMeter(kernels)
    models = {name: _measure_model(kernels, name, args, meter) for name in args.shapes}
    limits = meter.median
    report: dict[str, Any] = {
        "kind": "kernels",
        **machine.describe(),
        "measured_instruction_set": kernels.instruction_set,
        "limits": {"gb_per_s": limits.bytes_per_s / 1e9, "gflop_per_s": limits.flops_per_s / 1e9},
        "models": models,
    }
    print(format_report(report))
    if args.json is not None:
        write_json(args.json, report)
    return 0


def _measure_model(kernels: Kernels, name: str, args: argparse.Namespace, meter: LimitMeter) -> dict[str, Any]:
    calls = []
    measurements = _calls(kernels, shape_of(name), args)
    while True:
        with Neighbours() as neighbours:
            measured, limits = next(measurements, None), meter.measure()
        if measured is None:
            break
        calls.append({**measured.report(limits), "neighbour_cores": neighbours.disturbing})
        print(f"{name}: {measured.kernel} {measured.shape}{neighbours.warning}", file=sys.stderr, flush=True)
    return {"calls": calls, "lora": _lora(kernels, name, args, meter) if "lora" in args.kernels else []}


def _calls(kernels: Kernels, config: ModelConfig, args: argparse.Namespace) -> Iterator[Measured]:
    if "linear" in args.kernels:
        yield from linear_calls(kernels, config, args.rows, args.seconds)
    if "attention" in args.kernels:
        yield from attention_calls(kernels, config, args.seconds)
    if "norm" in args.kernels:
        yield from norm_calls(kernels, config, args.rows, args.seconds)


def linear_calls(kernels: Kernels, config: ModelConfig, rows: Sequence[int], seconds: float) -> Iterator[Measured]:
    widths = {target.site: (target.offset + target.out_features, target.in_features) for target in _layer(config)}
    for site in range(SITES_PER_LAYER):
        yield from _linear(kernels, SITES[site], *widths[site], EPILOGUES[site], rows, seconds)
    yield from _linear(kernels, "lm_head", config.vocab_size, config.hidden_size, Epilogue.STORE_FLOAT, rows, seconds)


def _layer(config: ModelConfig) -> tuple[Any, ...]:
    return lora_targets(with_layers(config, 1))


def _linear(
    kernels: Kernels, name: str, out: int, in_: int, epilogue: Epilogue, rows: Sequence[int], seconds: float
) -> Iterator[Measured]:
    weight = (torch.randn(out, in_) / in_**0.5).bfloat16()
    copies = [kernels.pack_linear(weight.clone()) for _ in range(-(-WEIGHT_BYTES // weight.nbytes))]
    for count in rows:
        x = torch.randn(count, in_).bfloat16()
        width = out // 2 if epilogue is Epilogue.SILU_MUL else out
        dtype = torch.float32 if epilogue is Epilogue.STORE_FLOAT else torch.bfloat16
        y = torch.zeros(count, width, dtype=dtype)

        def multiply(x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            for linear in copies:
                kernels.linear(linear, x, y, epilogue)

        elapsed = median_seconds(multiply, seconds) / len(copies)
        yield Measured("linear", f"{name} {in_}x{out}, {count} rows", elapsed, weight.nbytes, 2 * count * in_ * out)


def attention_calls(kernels: Kernels, config: ModelConfig, seconds: float) -> Iterator[Measured]:
    for rows, context in DECODE:
        num_bytes = layer_bytes(config, rows, context)
        if num_bytes <= MAX_LAYER_BYTES:
            elapsed = AttentionRows(kernels, config, rows, context).median_seconds(1, seconds)
            flops = attention_flops(config, rows, 1, context)
            yield Measured("attention", f"decode, {rows} rows, context {context}", elapsed, num_bytes, flops)
    for length in PREFILL:
        elapsed = AttentionRows(kernels, config, 1, length).median_seconds(length, seconds)
        flops = attention_flops(config, 1, length, length)
        yield Measured("attention", f"prefill, {length} tokens", elapsed, layer_bytes(config, 1, length), flops)


def norm_calls(kernels: Kernels, config: ModelConfig, rows: Sequence[int], seconds: float) -> Iterator[Measured]:
    width = config.hidden_size
    weight = torch.ones(width, dtype=torch.bfloat16)
    for count in rows:
        x, y = torch.randn(count, width).bfloat16(), torch.empty(count, width, dtype=torch.bfloat16)

        def norm(x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            for _ in range(100):
                kernels.rms_norm(x, weight, config.rms_norm_eps, y)

        elapsed = median_seconds(norm, seconds) / 100
        yield Measured("rms_norm", f"{count}x{width}, in cache", elapsed, x.nbytes + y.nbytes, 4 * x.numel())


def _lora(kernels: Kernels, name: str, args: argparse.Namespace, meter: LimitMeter) -> list[dict[str, Any]]:
    config = shape_of(name)
    layer_weights = 2 * sum(target.in_features * target.out_features for target in _layer(config))
    num_layers = min(config.num_layers, max(1, STACK_BYTES // layer_weights))
    is_whole = num_layers == config.num_layers
    cases = list(standard_cases(args.ranks)) if is_whole else list(LARGE_CASES)
    stack = DecoderStack(kernels, with_layers(config, num_layers), max(case.rows for case in cases))
    results = []
    for case in cases:
        with Neighbours() as neighbours:
            cost = measure_cost(stack, case, meter.measure(), args.seconds)
        results.append({**_lora_report(case, num_layers, cost), "neighbour_cores": neighbours.disturbing})
        print(f"{name}: LoRA {describe_case(case)}{neighbours.warning}", file=sys.stderr, flush=True)
    return results


def _lora_report(case: Case, num_layers: int, cost: Cost) -> dict[str, Any]:
    return {
        "rows": case.rows,
        "adapters": case.adapters,
        "rank": case.rank,
        "modules": list(case.modules),
        "layers": num_layers,
        **cost.report(),
    }


def describe_case(case: Case) -> str:
    modules = "all modules" if case.modules == ALL_MODULES else ", ".join(case.modules)
    return f"{case.rows} rows, {case.adapters} adapters, rank {case.rank}, {modules}"


def format_report(report: dict[str, Any]) -> str:
    limits = report["limits"]
    head = f"{machine.summary(report)}\nmeasured: {report['measured_instruction_set']} kernels; "
    head += f"limits: {limits['gb_per_s']:.1f} GB/s read, {limits['gflop_per_s']:.0f} GFLOP/s in cache (medians)"
    parts = [head]
    for name, model in report["models"].items():
        if model["calls"]:
            parts.append(f"{name}, one call\n\n{_call_table(model['calls'])}")
        if model["lora"]:
            layers = model["lora"][0]["layers"]
            parts.append(f"{name}, cost of adapters in all linears of {layers} layers\n\n{_lora_table(model['lora'])}")
    return "\n\n".join(parts)


def _call_table(calls: Sequence[dict[str, Any]]) -> str:
    header = ("kernel", "shape", "us", "GB/s", "GFLOP/s", "x limit", DISTURBED)
    names = ("kernel", "shape", "us", "gb_per_s", "gflop_per_s", "times_limit", "neighbour_cores")
    rows: list[list[Cell]] = [[call[name] for name in names] for call in calls]
    return format_table(header, rows)


def _lora_table(results: Sequence[dict[str, Any]]) -> str:
    header = ("case", "base ms", "added ms", "bytes ms", "flops ms", "regions ms", "ratio", "speed kept", DISTURBED)
    rows: list[list[Cell]] = []
    for result in results:
        case = Case(result["rows"], result["adapters"], result["rank"], tuple(result["modules"]))
        times: list[Cell] = [1e3 * result[name] for name in ("base", "added", "reading", "computing", "regions")]
        rows.append(
            [describe_case(case), *times, result["ratio"], result["share_of_base_speed"], result["neighbour_cores"]]
        )
    return format_table(header, rows)
