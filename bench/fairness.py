"""Fairness: time to first token of each adapter under fair shares and under first come, first served, simulated.

The trace is S-LoRA's, at slightly more load than the machine can carry, because the order of a queue matters only if a
queue forms. An adapter's figure is the mean over its requests; percentiles are over adapters.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blora.scheduler import Fairness

from .simulation import Machine, Outcome, simulate
from .table import Cell, format_table, write_json
from .throughput import percentile
from .trace import TraceShape, make_trace

POLICIES = ("fcfs", "fair")
ALPHAS = (1.0, 0.3)
RANK_PAGES = 27  # rank 16 on every module of SmolLM2-135M, blocks of 16 tokens
PERCENTILES = (0.25, 0.5, 0.75, 0.9, 0.99)
FILE = "fairness.json"
PLOT = "fairness.png"
COLOURS = {"fcfs": "#555555", "fair": "#0072b2"}


def run(args: argparse.Namespace) -> int:
    report = measure(args.adapters, args.rate, args.seconds, args.seed)
    write_json(args.folder / FILE, report)
    print(format_report(report))
    print(draw(report, args.folder))
    return 0


def measure(adapters: int, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Returns the report as plain data for JSON. rate: requests per second. seconds: how long requests arrive."""
    machine = Machine(num_pages=3000, adapter_pages=[RANK_PAGES] * adapters)
    report: dict[str, Any] = {"kind": "fairness", "machine": asdict(machine), "runs": []}
    for alpha in ALPHAS:
        shape = TraceShape(adapters=adapters, rate=rate, seconds=seconds, alpha=alpha, seed=seed)
        trace = make_trace(shape)
        for policy in POLICIES:
            outcome = simulate(trace, machine, policy, Fairness())
            report["runs"].append({"trace": asdict(shape), "policy": policy, **figures_of(outcome)})
    return report


def figures_of(outcome: Outcome) -> dict[str, Any]:
    by_adapter: dict[int, list[float]] = defaultdict(list)
    for adapter, seconds in zip(outcome.adapters, outcome.first_tokens, strict=True):
        by_adapter[adapter].append(seconds)
    means = sorted(statistics.fmean(times) for times in by_adapter.values())
    return {
        "ttft_s_of_adapters": [round(mean, 4) for mean in means],
        "ttft_s_of_requests": statistics.fmean(outcome.first_tokens),
        "requests": len(outcome.first_tokens),
        "seconds": outcome.seconds,
        "copied_pages": outcome.copied_pages,
    }


def format_report(report: Mapping[str, Any]) -> str:
    headers = ["TTFT s of adapters", *(f"p{share * 100:.0f}" for share in PERCENTILES), "all requests", "copied pages"]
    rows: list[list[Cell]] = []
    for entry in report["runs"]:
        means = entry["ttft_s_of_adapters"]
        cells: list[Cell] = [percentile(means, share) for share in PERCENTILES]
        name = f"alpha {entry['trace']['alpha']:g}, {entry['policy']}"
        rows.append([name, *cells, entry["ttft_s_of_requests"], entry["copied_pages"]])
    return format_table(headers, rows)


def draw(report: Mapping[str, Any], folder: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    for axes, alpha in zip(figure.subplots(1, len(ALPHAS), sharey=True), ALPHAS, strict=True):
        for entry in report["runs"]:
            if entry["trace"]["alpha"] == alpha:
                policy = entry["policy"]
                axes.plot(*_curve(entry["ttft_s_of_adapters"]), color=COLOURS[policy], label=policy)
        axes.set_title(f"popularity i^-{alpha:g}", fontsize=10)
        axes.set_xlabel("percentile of adapters")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.supylabel("mean time to first token, s", fontsize=10)
    shape = report["runs"][0]["trace"]
    title = f"simulated: {shape['adapters']} adapters, {shape['rate']:g} requests/s for {shape['seconds']:g} s"
    figure.suptitle(title, fontsize=10)
    figure.savefig(folder / PLOT, dpi=130)
    return folder / PLOT


def _curve(values: Sequence[float]) -> tuple[list[float], Sequence[float]]:
    return [100 * (index + 0.5) / len(values) for index in range(len(values))], values
