"""Sweep: throughput by rows, and by adapters for each popularity. It makes one engine, one file and three plots.

The file is written after every point, so that a stopped sweep keeps its measured points.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from . import machine
from .measured_engine import MeasuredEngine, Setup
from .plots import draw
from .random_adapters import ALL_MODULES
from .table import write_json
from .throughput import describe_engine, measure
from .workload import Workload

ROWS_ADAPTERS = 8  # adapters of the sweep over rows
POPULARITIES = ("uniform", "skewed", "identical")
FILE = "throughput.json"
KEPT = ("workload", "resident_adapters", "neighbour_cores", "rounds", "median")  # fields of each point's report


def run(args: argparse.Namespace) -> int:
    works = list(workloads(args))
    engine = MeasuredEngine(_setup(args, works))
    report: dict[str, Any] = {
        "kind": "sweep",
        **machine.describe(args.backend),
        **describe_engine(engine),
        "points": [],
    }
    for index, work in enumerate(works):
        print(f"point {index + 1} of {len(works)}: {describe_point(work)}", file=sys.stderr, flush=True)
        measured = measure(engine, work, args.rounds, args.warmups)
        report["points"].append({name: measured[name] for name in KEPT})
        write_json(args.folder / FILE, report)
    for path in draw(report, args.folder):
        print(path)
    return 0


def workloads(args: argparse.Namespace) -> Iterator[Workload]:
    """Yields every point once: first numbers of rows, then numbers of adapters for each popularity."""
    work = Workload(rows=1, prompt_len=args.prompt_len, output_len=args.output_len, seed=args.seed)
    seen = set()
    for rows in args.rows:
        seen.add(replace(work, rows=rows, adapters=ROWS_ADAPTERS))
        yield replace(work, rows=rows, adapters=ROWS_ADAPTERS)
    for popularity in POPULARITIES:
        for adapters in args.adapters:
            point = replace(work, rows=args.adapter_rows, adapters=adapters, popularity=popularity)
            if point not in seen:
                yield point


def describe_point(work: Workload) -> str:
    return f"{work.rows} rows, {work.adapters} adapters, {work.popularity}"


def _setup(args: argparse.Namespace, works: list[Workload]) -> Setup:
    return Setup(
        model=args.model,
        max_rows=max(work.rows for work in works),
        max_len=args.prompt_len + args.output_len,
        adapters=max(work.adapters for work in works),
        ranks=args.ranks,
        modules=ALL_MODULES if args.modules is None else args.modules,
        dtype=args.dtype,
        backend=args.backend,
        threads=args.threads,
        memory=args.memory,
        adapter_folder=args.adapter_folder,
    )
