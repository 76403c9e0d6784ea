"""The cost of idle adapters to base requests: an engine with adapters in memory that no request uses, compared with an
engine without adapters, on the same base rows, in turns.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from typing import Any

from . import machine
from .measured_engine import MeasuredEngine
from .neighbours import Neighbours
from .table import Cell, format_table, write_json
from .throughput import describe_engine, setup_of
from .workload import Workload

WARM_TOKENS = 4


def run(args: argparse.Namespace) -> int:
    setup = setup_of(argparse.Namespace(**{**vars(args), "rows": max(args.rows)}))
    engines = [MeasuredEngine(replace(setup, adapters=0)), MeasuredEngine(setup)]
    points = []
    for rows in args.rows:
        work = Workload(rows=rows, prompt_len=args.prompt_len, output_len=args.output_len, seed=args.seed)
        with Neighbours() as neighbours:
            steps = measure(engines, work, args.rounds)
        points.append({"rows": rows, "step_ms": steps, "neighbour_cores": neighbours.cores})
        print(f"{rows} rows{neighbours.warning}", file=sys.stderr, flush=True)
    report = {
        "kind": "idle adapters",
        **machine.describe(args.backend),
        **describe_engine(engines[1]),
        "resident_adapters": engines[1].num_resident,
        "points": points,
    }
    print(format_report(report))
    if args.json is not None:
        write_json(args.json, report)
    return 0


def measure(engines: list[MeasuredEngine], work: Workload, rounds: int) -> list[list[float]]:
    """Returns the median decode step of each engine in each round, in milliseconds: [rounds][engines]. The engines
    alternate in coming first, because the second may be faster or slower for its place alone."""
    prompts = work.prompts(engines[0].vocab_size)
    base: list[int | None] = [None] * work.rows
    for engine in engines:
        engine.run(prompts, base, WARM_TOKENS)
    steps = []
    for number in range(rounds):
        order = range(len(engines))[:: -1 if number % 2 else 1]
        taken = {
            index: 1e3 * statistics.median(engines[index].run(prompts, base, work.output_len).decode_steps)
            for index in order
        }
        steps.append([taken[index] for index in range(len(engines))])
    return steps


def format_report(report: dict[str, Any]) -> str:
    rows: list[list[Cell]] = []
    for point in report["points"]:
        without, beside = (statistics.median(column) for column in zip(*point["step_ms"], strict=True))
        ratio = statistics.median(one / other for one, other in point["step_ms"])
        rows.append([str(point["rows"]), without, beside, f"{ratio:.3f}"])
    header = ("base rows", "step ms, no adapters", f"step ms, {report['resident_adapters']} idle ones", "speed kept")
    return f"{machine.summary(report)}\n{report['model_id']}, {report['dtype']}\n\n{format_table(header, rows)}"
