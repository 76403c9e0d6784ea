"""`blora bench sweep-rate`: the highest request rate at which a share of the requests is good, on a running server.

The rate doubles until one fails, then it is bisected. At each rate requests arrive for `--probe-seconds`; a rate whose
share of good requests is not surely above or below `--attainment` is tried again. A run with a fault of its own,
such as a generator that was the limit, ends the search.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from .load.search import Found, find_rate
from .serve.program import make_plan, measure
from .serve.served import Served, look_at
from .table import Cell, format_table, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags besides those of `blora bench serve`."""
    group = parser.add_argument_group("search")
    group.add_argument(
        "--attainment", type=float, default=0.99, metavar="SHARE", help="of requests that are good (default: 0.99)"
    )
    group.add_argument(
        "--start-rate", type=float, default=1.0, metavar="N", help="requests/s to begin with (default: 1)"
    )
    group.add_argument(
        "--probe-seconds", type=float, default=30.0, metavar="S", help="of arrivals at each rate (default: 30)"
    )
    group.add_argument(
        "--tolerance", type=float, default=0.05, metavar="SHARE", help="of the rate that is found (default: 0.05)"
    )
    group.add_argument("--most-runs", type=int, default=3, metavar="N", help="at a rate that is not sure (default: 3)")
    group.add_argument("--json", type=Path, metavar="FILE", help="write all points here")


def run(args: argparse.Namespace) -> int:
    if not args.goodput:
        raise ValueError("a search needs --goodput, what makes a request good, such as --goodput ttft:1000 tpot:100")
    served = look_at(args)
    results: list[dict[str, Any]] = []
    found = find_rate(
        lambda rate, number: _attempt(args, served, rate, number, results),
        args.attainment,
        start=args.start_rate,
        tolerance=args.tolerance,
        most_runs=args.most_runs,
    )
    print(format_found(found))
    report = report_of(args, found, results)
    if args.json is not None:
        write_json(args.json, report)
    if args.html is not None:
        from .report import search_page  # imports matplotlib

        search_page(report).write(args.html)
    return int(found.rate is None)


def _attempt(
    args: argparse.Namespace, served: Served, rate: float, number: int, results: list[dict[str, Any]]
) -> tuple[int, int]:
    """Raises OSError for a run that is not valid."""
    options = vars(args) | {
        "request_rate": rate,
        "num_prompts": max(round(rate * args.probe_seconds), 1),
        "seed": args.seed + number,
    }
    probe = argparse.Namespace(**options)
    result, sent = measure(probe, served, make_plan(probe, served))
    results.append(result)
    if result["faults"]:
        raise OSError("; ".join(result["faults"]))
    good: int = result["good"]
    print(f"{good} of {len(sent.records)} good at {rate:.2f} requests/s", file=sys.stderr)
    return good, len(sent.records)


def format_found(found: Found) -> str:
    rows: list[list[Cell]] = [
        [
            f"{point.rate:.2f}",
            point.total,
            f"{point.share:.3f}",
            "{:.3f} to {:.3f}".format(*point.interval),
            point.runs,
            ("met" if point.is_met else "failed") + ("" if point.is_sure else ", not sure"),
        ]
        for point in sorted(found.points, key=lambda point: point.rate)
    ]
    table = format_table(["requests/s", "requests", "good", "95 % interval", "runs", ""], rows)
    last = "no rate meets the goal" if found.rate is None else f"the highest rate that meets it is {found.rate:.2f}/s"
    return f"{table}\n\n{last}"


def report_of(args: argparse.Namespace, found: Found, results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "kind": "sweep-rate",
        "options": {name: str(value) for name, value in vars(args).items()},
        "rate": found.rate,
        "points": [
            {
                "rate": point.rate,
                "good": point.good,
                "total": point.total,
                "runs": point.runs,
                "interval": point.interval,
                "is_met": point.is_met,
                "is_sure": point.is_sure,
            }
            for point in found.points
        ],
        "results": results,
    }
