"""The page of one run: its figures, the times of its requests, and what became of each."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..load import Record
from . import run_charts
from .page import Page

TIMES = ("ttft", "sent_ttft", "tpot", "itl", "e2el", "refusal", "lag")
COLUMNS = ("mean", "median", "p90", "p95", "p99")
OF_GROUPS = ("share", "completed", "failed", "p50_ttft_ms", "p99_ttft_ms", "p50_itl_ms", "p99_itl_ms")
MOST_GROUPS = 40  # in a table; the result has all
FIGURES = (
    "duration",
    "completed",
    "failed",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_concurrent_requests",
    "checked_answers",
    "wrong_answers",
)


def run_page(result: Mapping[str, Any], records: Sequence[Record]) -> Page:
    page = Page(f"{result['model_id']} over {result['backend']}, {result['request_rate']} requests/s")
    for fault in result["faults"]:
        page.fault(f"Not valid: {fault}")
    page.table(["figure", ""], [[name, result[name]] for name in FIGURES if result.get(name) is not None])
    page.heading("Times, in milliseconds")
    page.table(
        ["", *COLUMNS],
        [[name, *(result.get(f"{c}_{name}_ms") for c in COLUMNS)] for name in TIMES if f"mean_{name}_ms" in result],
    )
    page.heading("Requests over time")
    page.text("Each line is a request, from its planned arrival to its end; the first token divides it.")
    page.chart(run_charts.timeline(records))
    page.heading("Time to first token and load, over time")
    page.chart(run_charts.over_time(records))
    page.heading("Time between messages with tokens")
    page.chart(run_charts.gaps(records))
    for kind in ("adapters", "tenants"):
        _add_groups(page, kind, result)
    _add_counts(page, "What did not end well", result["refusals"])
    _add_counts(page, "What the server counted meanwhile", result["server"])
    page.heading("Where and how")
    page.table(
        ["", ""], [[name, str(result.get(name))] for name in ("date", "commit", "seed", "burstiness", "versions")]
    )
    page.table(["machine", ""], [[name, str(value)] for name, value in result["machine"].items()])
    return page


def _add_groups(page: Page, kind: str, result: Mapping[str, Any]) -> None:
    groups = sorted(result[kind].items(), key=lambda item: -item[1]["share"])
    if len(groups) < 2:
        return
    fairness = result[f"{kind}_fairness"]
    page.heading(f"{len(groups)} {kind}: Jain's index {fairness['jain']:.3f}")
    page.chart(run_charts.groups(result[kind], kind))
    page.table(
        [kind, *OF_GROUPS], [[name or "(none)", *map(group.get, OF_GROUPS)] for name, group in groups[:MOST_GROUPS]]
    )


def _add_counts(page: Page, title: str, counts: Mapping[str, float]) -> None:
    if counts:
        page.heading(title)
        page.table(["", "count"], [[name, count] for name, count in counts.items()])
