"""`blora bench compare`: two sets of results beside each other, and which of their differences are noise.

A file has a result, or several, a line each, as `blora bench serve --append-result` writes them. A difference is real
where no run of one set comes between those of the other one: with three runs each that happens by chance once in ten
times, with five once in 126. With fewer than three runs nothing is said.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .table import Cell, format_table

LEAST_RUNS = 3
FIGURES = (
    ("request_throughput", "request_goodput", "output_throughput"),
    tuple(f"{kind}_{name}_ms" for name in ("ttft", "sent_ttft", "tpot", "itl", "e2el") for kind in ("median", "p99")),
)
NOISE, UNKNOWN = "noise", "too few runs"


def run(args: argparse.Namespace) -> int:
    before, after = read_results(args.before), read_results(args.after)
    print(format_comparison(before, after))
    return 0


def read_results(path: Path) -> list[dict[str, Any]]:
    """Raises ValueError for what is no result."""
    text = path.read_text()
    try:
        found = json.loads(text)
        results = found if isinstance(found, list) else [found]
    except ValueError:
        results = [_line(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not results or not all(isinstance(result, dict) and "request_throughput" in result for result in results):
        raise ValueError(f"{path} is no result of `blora bench serve` or `vllm bench serve`")
    return results


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} of {path} is no JSON: {error}") from None


def format_comparison(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    rows: list[list[Cell]] = []
    for names, more_is_better in zip(FIGURES, (True, False), strict=True):
        for name in names:
            pair = _values(before, name), _values(after, name)
            if all(pair):
                rows.append(_row(name, *pair, more_is_better))
    header = ["figure", "before", "after", "ratio", "least", "most", "says"]
    return "\n".join([f"{len(before)} runs before, {len(after)} after", "", format_table(header, rows)])


def _row(name: str, before: Sequence[float], after: Sequence[float], more_is_better: bool) -> list[Cell]:
    first, second = statistics.median(before), statistics.median(after)
    least, most = min(after) / max(before), max(after) / min(before)
    return [name, first, second, second / first, least, most, verdict(before, after, more_is_better)]


def verdict(before: Sequence[float], after: Sequence[float], more_is_better: bool) -> str:
    if min(len(before), len(after)) < LEAST_RUNS:
        return UNKNOWN
    if min(after) > max(before):
        return "better" if more_is_better else "worse"
    if max(after) < min(before):
        return "worse" if more_is_better else "better"
    return NOISE


def _values(results: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The values of those results that have the figure; none where one of them is 0, of which there is no ratio."""
    values = [float(result[name]) for result in results if result.get(name) is not None]
    return values if all(value > 0 for value in values) else []
