"""Profiles a decode step of the real engine at several numbers of rows, on the base model and with adapters.

Native time is that of the library's own functions; the time of the Python around them has its own lines. The adapters'
part of the linears is their time less that of the same rows on the base model. The last line is the time by which a
step in an engine process (AsyncLLM) is longer than one in this process (LLM).
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from blora.adapters.lora import LoRAPlanner
from blora.engine import AsyncLLM, SamplingParams
from blora.engine.cpu.backend import kernels_of
from blora.engine.cpu.decoder import CpuCausalLM
from blora.engine.front_end.output_processor import OutputProcessor
from blora.engine.kernels.library import FUNCTIONS, Kernels
from blora.engine.model.decoder import CausalLM
from blora.engine.step import runner
from blora.engine.step.core import EngineCore
from blora.engine.step.runner import ModelRunner
from blora.scheduler import Scheduler

from . import machine
from .measured_engine import MeasuredEngine, Setup
from .neighbours import Neighbours
from .stopwatch import Record, Stopwatch
from .table import Cell, format_table, write_json
from .throughput import describe_engine, setup_of
from .workload import Workload

# Native functions and their labels; a function that is not listed has its own name as label. The layers are one
# function, which reports the times of its parts.
LAYERS = "decoder"
PARTS = ("linear", "attention", "norms")
NATIVE = {
    LAYERS: "layers: rest",
    "linear": "linear",
    "attention": "attention",
    "rms_norm": "norms",
    "silu_mul": "norms",
    "unpack_rows": "embedding",
}
CALLS = "Python: kernel calls"
FORWARD = "Python: forward"
BATCH = "Python: batch"
SCHEDULER = "Python: scheduler"
OUTPUTS = "Python: outputs"
OTHER = "Python: rest"
LORA = "LoRA"
SAMPLING = "sampling"
TOTAL, PLAIN, IPC = "step", "step, not watched", "AsyncLLM adds"
REPEATS = 2  # passes of base and adapters, in turns
IPC_REPEATS = 3
Breakdown = dict[str, float]  # label -> milliseconds


def run(args: argparse.Namespace) -> int:
    args.rows = tuple(sorted(set(args.rows)))
    setup = setup_of(argparse.Namespace(**{**vars(args), "rows": max(args.rows)}))
    engine = MeasuredEngine(setup)
    works = [_workload(args, rows) for rows in args.rows]
    columns: dict[str, Breakdown] = {}
    with Neighbours() as neighbours:
        for work in works:
            print(f"{work.rows} rows", file=sys.stderr, flush=True)
            columns |= profile(engine, work)
        for work, added in zip(works, measure_ipc(engine, works), strict=True):
            columns[f"{work.rows} base"][IPC] = added
    report = {
        "kind": "step",
        **machine.describe(args.backend),
        **describe_engine(engine),
        "neighbour_cores": neighbours.cores,
        "milliseconds": columns,
    }
    print(format_report(report) + neighbours.warning)
    if args.json is not None:
        write_json(args.json, report)
    return 0


def _workload(args: argparse.Namespace, rows: int) -> Workload:
    return Workload(
        rows=rows,
        prompt_len=args.prompt_len,
        output_len=args.output_len,
        adapters=args.adapters,
        seed=args.seed,
    )


def profile(engine: MeasuredEngine, work: Workload) -> dict[str, Breakdown]:
    """Returns the breakdowns of the base model and of adapters, under names that start with the number of rows."""
    variants = {"base": replace(work, adapters=0), "adapters": work}
    runs: dict[str, list[list[Record]]] = {name: [] for name in variants}
    plain: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(REPEATS):
        for name, variant in variants.items():
            plain[name] += _plain_steps(engine, variant)
            runs[name].append(_watched_steps(engine, variant))
    base, mixed = (middle_of(runs[name]) | {PLAIN: 1e3 * statistics.median(plain[name])} for name in variants)
    mixed[LORA] = mixed.get(LORA, 0.0) + mixed.get("linear", 0.0) - base.get("linear", 0.0)
    mixed["linear"] = base.get("linear", 0.0)
    return {f"{work.rows} base": base, f"{work.rows} adapters": mixed}


def _plain_steps(engine: MeasuredEngine, work: Workload) -> Sequence[float]:
    return engine.run(work.prompts(engine.vocab_size), work.assign(), work.output_len).decode_steps


def _watched_steps(engine: MeasuredEngine, work: Workload) -> list[Record]:
    with Stopwatch() as stopwatch:
        watch(stopwatch, kernels_of(engine.setup.backend))
        num_steps = len(_plain_steps(engine, work))
    kernels = kernels_of(engine.setup.backend)
    if kernels is not None:
        kernels.seconds = None
    return stopwatch.records[-num_steps:]


def watch(stopwatch: Stopwatch, kernels: Kernels | None) -> None:
    """Watches every engine of this process."""
    stopwatch.watch(EngineCore, "step", OTHER, starts_record=True)
    for name in ("schedule", "update"):
        stopwatch.watch(Scheduler, name, SCHEDULER)
    stopwatch.watch(ModelRunner, "execute", OTHER)
    stopwatch.watch(runner, "build_batch", BATCH)
    stopwatch.watch(runner, "in_batch_order", BATCH)
    stopwatch.watch(runner, "sample", SAMPLING)
    for planner in _kinds_of(LoRAPlanner):
        stopwatch.watch(planner, "plan", LORA)
    for model in (CausalLM, CpuCausalLM):
        for name in ("forward", "compute_logits"):
            stopwatch.watch(model, name, FORWARD)
    stopwatch.watch(OutputProcessor, "process", OUTPUTS)
    watch_kernels(stopwatch, kernels)


def _kinds_of(kind: type[Any]) -> Iterator[type[Any]]:
    """Yields the imported subclasses of an interface; those in use are among them."""
    for below in kind.__subclasses__():
        yield below
        yield from _kinds_of(below)


def watch_kernels(stopwatch: Stopwatch, kernels: Kernels | None) -> None:
    """Watches the methods that check a call, and the native functions below them."""
    if kernels is None:
        return
    seconds = kernels.seconds = torch.zeros(len(PARTS), dtype=torch.float64)

    def take_parts() -> dict[str, float]:
        parts = dict(zip(PARTS, seconds.tolist(), strict=True))
        seconds.zero_()
        return parts

    for function in FUNCTIONS:
        name = function.removeprefix("blora_")
        stopwatch.watch(kernels, name, CALLS)
        parts = take_parts if name == LAYERS else None
        stopwatch.watch(kernels.library, function, NATIVE.get(name, name), parts=parts)


def middle_of(runs: Sequence[Sequence[Record]]) -> Breakdown:
    """Returns means in ms over the middle half of the steps: neither the fastest nor the slowest quarter."""
    steps = [(after.start - step.start, step) for records in runs for step, after in pairwise(records)]
    lengths = sorted(steps, key=lambda step: step[0])
    chosen = lengths[len(lengths) // 4 : -(len(lengths) // 4) or None]
    labels = dict.fromkeys(label for _, step in chosen for label in step.seconds)
    result = {label: 1e3 * statistics.fmean(step.seconds.get(label, 0.0) for _, step in chosen) for label in labels}
    total = 1e3 * statistics.fmean(length for length, _ in chosen)
    result[OTHER] = result.get(OTHER, 0.0) + total - sum(result.values())
    return {**result, TOTAL: total}


def measure_ipc(engine: MeasuredEngine, works: Sequence[Workload]) -> list[float]:
    """Returns the milliseconds by which a base step is longer in an AsyncLLM than in the engine's LLM, both streaming
    all rows."""
    inside = [_inside_step(engine, work) for work in works]
    print("the same rows through an engine process", file=sys.stderr, flush=True)
    outside = asyncio.run(_outside_steps(engine.setup, engine.vocab_size, works))
    return [1e3 * (other - own) for own, other in zip(inside, outside, strict=True)]


def _sampling(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)


def _step_seconds(first: float, whole: float, work: Workload) -> float:
    return (whole - first) / (work.output_len - 1)


def _inside_step(engine: MeasuredEngine, work: Workload) -> float:
    prompts = [{"prompt_token_ids": prompt} for prompt in work.prompts(engine.vocab_size)]

    def stream(num_tokens: int) -> float:
        started = time.monotonic()
        for _ in engine.llm.stream(prompts, _sampling(num_tokens)):
            pass
        return time.monotonic() - started

    return statistics.median(_step_seconds(stream(1), stream(work.output_len), work) for _ in range(IPC_REPEATS))


async def _outside_steps(setup: Setup, vocab_size: int, works: Sequence[Workload]) -> list[float]:
    options: dict[str, Any] = {
        "dtype": setup.dtype,
        "backend": setup.backend,
        "threads": setup.threads,
        "max_model_len": setup.max_len,
        "enable_prefix_caching": False,
        "generation_config": "vllm",
    }
    async with AsyncLLM(setup.model, **options) as llm:
        return [await _outside_step(llm, work.prompts(vocab_size), work) for work in works]


async def _outside_step(llm: AsyncLLM, prompt_ids: Sequence[list[int]], work: Workload) -> float:
    prompts = [{"prompt_token_ids": prompt} for prompt in prompt_ids]

    async def stream(num_tokens: int) -> float:
        started = time.monotonic()
        async for _ in llm.stream(prompts, _sampling(num_tokens)):
            pass
        return time.monotonic() - started

    await stream(2)
    return statistics.median(
        [_step_seconds(await stream(1), await stream(work.output_len), work) for _ in range(IPC_REPEATS)]
    )


def format_report(report: Mapping[str, Any]) -> str:
    columns: dict[str, Breakdown] = report["milliseconds"]
    first = ["linear", LORA, "attention", "norms", "embedding"]
    last = [SAMPLING, CALLS, FORWARD, BATCH, SCHEDULER, OUTPUTS, OTHER, TOTAL, PLAIN, IPC]
    between = dict.fromkeys(label for column in columns.values() for label in column if label not in {*first, *last})
    rows: list[list[Cell]] = [
        [label, *(column.get(label) for column in columns.values())] for label in [*first, *between, *last]
    ]
    head = f"{machine.summary(report)}\n{report['model_id']}, {report['dtype']}; milliseconds of a decode step"
    return f"{head}\n\n{format_table(['rows', *columns], rows)}"
