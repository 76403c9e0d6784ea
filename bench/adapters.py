"""Thousands of adapters: throughput and time to first token by their number, then the effect of loading on traffic.

The arena holds only a few of them. All adapters have the weights of a few files: see `many_adapters.py`.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import loading, machine
from .many_adapters import load_many
from .measured_engine import MeasuredEngine, Setup
from .table import Cell, format_table, write_json
from .throughput import percentile

FILES = 8  # adapters with different weights
ROWS = 32  # requests at once
FILE = "adapters.json"
POPULARITIES = {"uniform": 0.0, "skewed": 1.0}  # adapter i gets requests in proportion to i ** -alpha
COLOURS = {"uniform": "#0072b2", "skewed": "#e69f00"}


def run(args: argparse.Namespace) -> int:
    report: dict[str, Any] = {"kind": "adapters", **machine.describe(), "model_id": Path(args.model).name}
    report |= {"rank": args.rank, "memory": args.memory, "points": []}
    engine = _engine(args)
    names = load_many(engine.llm, engine.adapter_folders, max(args.adapters))
    for popularity, alpha in POPULARITIES.items():
        for count in args.adapters:
            point = _point(engine, names[:count], alpha, args)
            report["points"].append({"popularity": popularity, "adapters": count, **point})
            print(f"{popularity}, {count} adapters: {point['throughput']:.0f} tokens/s", file=sys.stderr, flush=True)
            write_json(args.folder / FILE, report)
    print(format_report(report))
    print(draw(report, args.folder))
    del engine
    return loading.run(args)


def _engine(args: argparse.Namespace) -> MeasuredEngine:
    setup = Setup(
        model=args.model,
        max_rows=ROWS,
        max_len=256,
        adapters=FILES,
        ranks=(args.rank,),
        threads=args.threads,
        memory=args.memory,
        adapter_folder=args.adapter_folder,
    )
    return MeasuredEngine(setup)


def _point(engine: MeasuredEngine, names: Sequence[str], alpha: float, args: argparse.Namespace) -> dict[str, Any]:
    """Measures one number of adapters. All requests arrive at the start. A first, unmeasured round brings the popular
    adapters into the arena."""
    weights = [(index + 1) ** -alpha for index in range(len(names))]
    draw = random.Random(f"{args.seed} {len(names)} {alpha}")
    throughputs, first_tokens = list[float](), list[float]()
    _pass(engine, draw.choices(names, weights, k=args.requests), args)
    before = engine.llm.get_info()
    for _ in range(args.rounds):
        started = time.monotonic()
        first_tokens += _pass(engine, draw.choices(names, weights, k=args.requests), args)
        throughputs.append(args.requests * args.output_len / (time.monotonic() - started))
    after = engine.llm.get_info()
    num_uses = after.num_adapter_uses - before.num_adapter_uses
    return {
        "throughput": statistics.median(throughputs),
        "throughputs": throughputs,
        "median_ttft_ms": 1e3 * statistics.median(first_tokens),
        "p99_ttft_ms": 1e3 * percentile(first_tokens, 0.99),
        "hit_rate": (after.num_adapter_hits - before.num_adapter_hits) / num_uses,
        "copied_pages": after.num_copied_pages - before.num_copied_pages,
    }


def _pass(engine: MeasuredEngine, picks: Sequence[str], args: argparse.Namespace) -> list[float]:
    """Returns the seconds to each request's first token."""
    return engine.first_tokens(picks, args.prompt_len, args.output_len)


def format_report(report: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = [
        [
            f"{point['adapters']:,} adapters, {point['popularity']}",
            point["throughput"],
            point["median_ttft_ms"],
            point["p99_ttft_ms"],
            100 * point["hit_rate"],
        ]
        for point in report["points"]
    ]
    table = format_table(["", "tokens/s", "TTFT ms", "p99", "found resident %"], rows)
    return f"{machine.summary(report)}\n\n{table}"


def draw(report: Mapping[str, Any], folder: Path) -> Path:
    """Writes a PNG and returns it."""
    from matplotlib.figure import Figure

    counts = Figure(figsize=(9.0, 4.0), layout="constrained")
    axes = counts.subplots(1, 2)
    for name in POPULARITIES:
        points = [point for point in report["points"] if point["popularity"] == name]
        numbers = [point["adapters"] for point in points]
        for plot, figure, label in zip(
            axes, ("throughput", "median_ttft_ms"), ("output tokens/s", "median time to first token, ms"), strict=True
        ):
            plot.plot(numbers, [point[figure] for point in points], "o-", color=COLOURS[name], label=name)
            plot.set_xscale("log")
            plot.set_ylim(bottom=0)
            plot.set_xlabel("adapters")
            plot.set_ylabel(label)
            plot.grid(alpha=0.3)
            plot.legend()
    counts.suptitle(
        f"{report['model_id']}, rank {report['rank']}, {ROWS} rows, arena of {report['memory']}", fontsize=10
    )
    counts.savefig(folder / "adapters.png", dpi=130)
    return folder / "adapters.png"
