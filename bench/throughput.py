"""Throughput in process: rows with adapters, and the same rows on the base model, in turns.

A round times a pass of one token (T1) and one of all tokens (Tn), for the base model and then with adapters. Prefill is
rows * prompt_len / T1, decode is rows * (output_len - 1) / (Tn - T1), in tokens per second. Medians are over rounds.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import machine
from .measured_engine import MeasuredEngine, Setup
from .neighbours import WARN_CORES, Neighbours
from .random_adapters import ALL_MODULES
from .table import Cell, format_table, write_json
from .workload import Workload

WARM_TOKENS = 4
FIGURES = {
    "prefill_throughput": "prefill tok/s",
    "decode_throughput": "decode tok/s",
    "median_step_ms": "step ms",
    "p99_step_ms": "p99",
    "median_ttft_ms": "TTFT ms",
    "p99_ttft_ms": "p99",
}
Figures = dict[str, float]
Round = dict[str, Figures]  # "base", and with adapters also "adapters" and "ratio"


def run(args: argparse.Namespace) -> int:
    work, setup = workload_of(args), setup_of(args)
    engine = MeasuredEngine(setup)
    report = measure(engine, work, args.rounds, args.warmups)
    print(format_report(report))
    if args.json is not None:
        write_json(args.json, report)
    return 0


def workload_of(args: argparse.Namespace) -> Workload:
    return Workload(
        rows=args.rows,
        prompt_len=args.prompt_len,
        output_len=args.output_len,
        adapters=args.adapters,
        popularity=args.popularity,
        base_share=args.base_share,
        seed=args.seed,
    )


def setup_of(args: argparse.Namespace) -> Setup:
    return Setup(
        model=args.model,
        max_rows=args.rows,
        max_len=args.prompt_len + args.output_len,
        adapters=args.adapters,
        ranks=args.ranks,
        modules=ALL_MODULES if args.modules is None else args.modules,
        dtype=args.dtype,
        backend=args.backend,
        threads=args.threads,
        memory=args.memory,
        adapter_folder=args.adapter_folder,
    )


def measure(engine: MeasuredEngine, work: Workload, rounds: int, warmups: int) -> dict[str, Any]:
    """Runs a workload; returns a report as plain data for JSON. The engine has at least the workload's adapters."""
    prompts = work.prompts(engine.vocab_size)
    for turn in range(warmups):
        for rows in _variants(work, turn).values():
            engine.run(prompts, rows, min(WARM_TOKENS, work.output_len))
    measured: list[Round] = []
    busy: list[float] = []
    for turn in range(rounds):
        with Neighbours() as neighbours:
            measured.append(_round(engine, work, prompts, turn))
        busy.append(neighbours.cores)
        brief = _brief(measured[-1]) + neighbours.warning
        print(f"round {turn + 1} of {rounds}: {brief}", file=sys.stderr, flush=True)
    return {
        "kind": "throughput",
        **machine.describe(engine.setup.backend),
        **describe_engine(engine),
        "workload": asdict(work),
        "resident_adapters": engine.num_resident,
        "neighbour_cores": busy,
        "rounds": measured,
        "median": median_of(measured),
    }


def describe_engine(engine: MeasuredEngine) -> dict[str, Any]:
    """Returns a description of the engine, without paths of this machine."""
    setup = engine.setup
    return {
        "model_id": Path(setup.model).name,
        "dtype": engine.dtype,
        "backend": setup.backend,
        "loaded_adapters": setup.adapters,
        "adapter_bytes": engine.adapter_bytes,
        "ranks": list(setup.ranks),
        "modules": list(setup.modules),
    }


def _variants(work: Workload, turn: int) -> dict[str, list[int | None]]:
    variants: dict[str, list[int | None]] = {"base": [None] * work.rows}
    if work.adapters:
        variants["adapters"] = work.assign(turn)
    return variants


def _round(engine: MeasuredEngine, work: Workload, prompts: Sequence[list[int]], turn: int) -> Round:
    result = {name: _figures(engine, work, prompts, rows) for name, rows in _variants(work, turn).items()}
    if "adapters" in result:
        result["ratio"] = {name: result["adapters"][name] / result["base"][name] for name in FIGURES}
    return result


def _figures(
    engine: MeasuredEngine, work: Workload, prompts: Sequence[list[int]], adapters: Sequence[int | None]
) -> Figures:
    first = engine.run(prompts, adapters, 1)
    whole = engine.run(prompts, adapters, work.output_len)
    if whole.seconds <= first.seconds:
        raise RuntimeError(f"{work.output_len} tokens took no longer than one: the machine is too busy to measure")
    return {
        "seconds_first_token": first.seconds,
        "seconds": whole.seconds,
        "prefill_throughput": work.rows * work.prompt_len / first.seconds,
        "decode_throughput": work.rows * (work.output_len - 1) / (whole.seconds - first.seconds),
        "median_step_ms": 1e3 * statistics.median(whole.decode_steps),
        "p99_step_ms": 1e3 * percentile(whole.decode_steps, 0.99),
        "median_ttft_ms": 1e3 * statistics.median(whole.first_tokens),
        "p99_ttft_ms": 1e3 * percentile(whole.first_tokens, 0.99),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(-int(-share * len(ordered) // 1), 1) - 1]


def median_of(rounds: Sequence[Round]) -> Round:
    """Returns the median of each figure over the rounds; a ratio is the median of the rounds' ratios."""
    return {
        variant: {name: statistics.median(entry[variant][name] for entry in rounds) for name in figures}
        for variant, figures in rounds[0].items()
    }


def _brief(entry: Round) -> str:
    parts = [f"{name} {figures['decode_throughput']:.0f} tok/s" for name, figures in entry.items() if name != "ratio"]
    return ", ".join(parts)


def format_report(report: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = []
    for index, entry in enumerate(report["rounds"]):
        rows += [[f"{name}, round {index + 1}", *_cells(figures)] for name, figures in entry.items() if name != "ratio"]
    labels = {"base": "base, median", "adapters": "adapters, median", "ratio": "adapters / base"}
    rows += [[labels[name], *_cells(figures)] for name, figures in report["median"].items()]
    table = format_table(["", *FIGURES.values()], rows)
    return f"{machine.summary(report)}\n{describe_work(report)}\n\n{table}{_busy_note(report['neighbour_cores'])}"


def _busy_note(cores: Sequence[float]) -> str:
    if max(cores) <= WARN_CORES:
        return ""
    return f"\n\nOther processes kept up to {max(cores):.1f} cores busy: measure again on a quiet machine."


def _cells(figures: Figures) -> list[Cell]:
    return [figures[name] for name in FIGURES]


def describe_work(report: Mapping[str, Any]) -> str:
    """Returns one line that describes the workload and the engine."""
    work = report["workload"]
    text = f"{report['model_id']}, {report['dtype']}, {work['rows']} rows, {work['prompt_len']} + "
    text += f"{work['output_len']} tokens"
    if not work["adapters"]:
        return f"{text}, base model"
    modules = "all modules" if set(report["modules"]) == set(ALL_MODULES) else ", ".join(report["modules"])
    ranks = " and ".join(map(str, report["ranks"]))
    text += f", {work['adapters']} adapters of rank {ranks} on {modules}, {work['popularity']}"
    return f"{text}, {work['base_share']:.0%} base rows" if work["base_share"] else text
