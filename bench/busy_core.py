"""One compute thread and several, alone and beside a process that keeps one core busy: two engines on the same rows, in
turns. Several threads must not be slower than one for the core that they cannot have.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from blora.engine.startup.cores import usable_cores

from . import machine
from .measured_engine import MeasuredEngine, Setup
from .neighbours import Neighbours
from .table import Cell, format_table, write_json
from .throughput import describe_engine
from .workload import Workload

WARM_TOKENS = 4
SPIN = "import os; os.sched_setaffinity(0, [{core}]); print(flush=True)\nwhile True: pass"
Round = dict[str, list[float]]  # "alone" and "beside": tokens/s with one thread, and with several


def run(args: argparse.Namespace) -> int:
    threads = [1, args.threads or usable_cores()]
    engines = [MeasuredEngine(_setup(args, number)) for number in threads]
    work = Workload(rows=args.rows, prompt_len=args.prompt_len, output_len=args.output_len, seed=args.seed)
    with Neighbours() as neighbours:
        rounds = measure(engines, work, args.rounds)
    report = {
        "kind": "busy core",
        **machine.describe(args.backend),
        **describe_engine(engines[1]),
        "rows": args.rows,
        "threads": threads,
        "rounds": rounds,
        "neighbour_cores": neighbours.cores,  # the process of this program included
    }
    print(format_report(report))
    if args.json is not None:
        write_json(args.json, report)
    return 0


def _setup(args: argparse.Namespace, threads: int) -> Setup:
    return Setup(
        model=args.model,
        max_rows=args.rows,
        max_len=args.prompt_len + args.output_len,
        dtype=args.dtype,
        backend=args.backend,
        threads=threads,
        memory=args.memory,
    )


def measure(engines: Sequence[MeasuredEngine], work: Workload, rounds: int) -> list[Round]:
    prompts = work.prompts(engines[0].vocab_size)
    base: list[int | None] = [None] * work.rows

    def speed(engine: MeasuredEngine) -> float:
        taken = engine.run(prompts, base, work.output_len)
        return work.rows * (work.output_len - 1) / (taken.seconds - max(taken.first_tokens))

    for engine in engines:
        engine.run(prompts, base, WARM_TOKENS)
    measured = []
    for number in range(rounds):
        entry = {}
        for name, neighbour in (("alone", nullcontext()), ("beside", busy_core())):
            with neighbour:
                entry[name] = [speed(engine) for engine in engines]
        measured.append(entry)
        print(f"round {number + 1} of {rounds}: {_brief(entry)}", file=sys.stderr, flush=True)
    return measured


@contextmanager
def busy_core() -> Iterator[None]:
    """Keeps the last core busy, in a process of its own."""
    program = SPIN.format(core=max(os.sched_getaffinity(0)))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def _brief(entry: Round) -> str:
    return ", ".join(f"{name} {' and '.join(f'{speed:.0f}' for speed in speeds)}" for name, speeds in entry.items())


def format_report(report: dict[str, Any]) -> str:
    several = report["threads"][1]
    rows: list[list[Cell]] = []
    for name, label in (("alone", "alone"), ("beside", "beside a busy core")):
        speeds = [entry[name] for entry in report["rounds"]]
        ratio = statistics.median(many / one for one, many in speeds)
        rows.append([label, *(statistics.median(column) for column in zip(*speeds, strict=True)), f"{ratio:.2f}"])
    header = ("", "tok/s, 1 thread", f"tok/s, {several} threads", "ratio")
    work = f"{report['model_id']}, {report['dtype']}, {report['rows']} rows, decode"
    return f"{machine.summary(report)}\n{work}\n\n{format_table(header, rows)}"
