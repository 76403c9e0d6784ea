"""The cost of structured output to a decode step: no row with a grammar, one, and all, in turns. Wanted: with a grammar
in each of 64 rows, a step takes at most 5 % longer.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from blora.engine import StructuredOutputsParams

from . import machine
from .measured_engine import MeasuredEngine, Setup
from .table import Cell, format_table, write_json
from .throughput import describe_engine
from .workload import Workload

WARM_TOKENS = 4
# A list that goes on longer than any pass, of what answers in JSON are made of.
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["first", "second", "third"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 1000},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}},
    },
    "required": ["name", "kind", "count", "tags"],
    "additionalProperties": False,
}
ENDLESS = StructuredOutputsParams(json={"type": "array", "items": ITEM, "minItems": 10_000})
PARTS = ("none", "one", "all")  # of the rows have a grammar
Round = dict[str, float]  # milliseconds of a step, the median of a pass, by part


def run(args: argparse.Namespace) -> int:
    setup = Setup(
        model=args.model,
        max_rows=max(args.rows),
        max_len=args.prompt_len + args.output_len,
        dtype=args.dtype,
        backend=args.backend,
        threads=args.threads,
        memory=args.memory,
    )
    engine = MeasuredEngine(setup)
    rounds = {str(rows): measure(engine, args, rows) for rows in args.rows}
    report = {"kind": "grammar", **machine.describe(args.backend), **describe_engine(engine), "rounds": rounds}
    print(format_report(report))
    if args.json is not None:
        write_json(args.json, report)
    return 0


def measure(engine: MeasuredEngine, args: argparse.Namespace, rows: int) -> list[Round]:
    work = Workload(rows=rows, prompt_len=args.prompt_len, output_len=args.output_len, seed=args.seed)
    prompts, base = work.prompts(engine.vocab_size), [None] * rows

    def step(part: str, num_tokens: int) -> float:
        taken = engine.run(prompts, base, num_tokens, whats(part, rows))
        return 1000 * statistics.median(taken.decode_steps)

    for part in PARTS:
        step(part, WARM_TOKENS)
    measured = []
    for number in range(args.rounds):
        measured.append({part: step(part, work.output_len) for part in PARTS})
        told = ", ".join(f"{part} {seconds:.2f} ms" for part, seconds in measured[-1].items())
        print(f"{rows} rows, round {number + 1} of {args.rounds}: {told}", file=sys.stderr, flush=True)
    return measured


def whats(part: str, rows: int) -> Sequence[StructuredOutputsParams | None]:
    num_bound = {"none": 0, "one": 1, "all": rows}[part]
    return [ENDLESS] * num_bound + [None] * (rows - num_bound)


def format_report(report: dict[str, Any]) -> str:
    table: list[list[Cell]] = []
    for rows, rounds in report["rounds"].items():
        steps = {part: statistics.median(entry[part] for entry in rounds) for part in PARTS}
        added = {part: statistics.median(entry[part] / entry["none"] - 1 for entry in rounds) for part in PARTS[1:]}
        table.append([rows, *steps.values(), *(f"{100 * share:+.1f} %" for share in added.values())])
    header = ("rows", "ms, none", "ms, one", "ms, all", "one", "all")
    work = f"{report['model_id']}, {report['dtype']}, decode steps with a grammar in none, one or all of the rows"
    return f"{machine.summary(report)}\n{work}\n\n{format_table(header, table)}"
