"""The page of a search over rates: throughput against latency, and times and goodput against the rate."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .page import Page

COLOURS = ("#0072b2", "#e69f00", "#009e73")
Result = Mapping[str, Any]


def search_page(report: Mapping[str, Any]) -> Page:
    """report: of `blora bench sweep-rate`."""
    results = sorted(report["results"], key=lambda result: float(result["request_rate"]))
    found = report["rate"]
    page = Page("The highest rate that meets the goal: " + ("none" if found is None else f"{found:.2f} requests/s"))
    page.table(
        ["requests/s", "requests", "good", "runs", ""],
        [
            [point["rate"], point["total"], point["good"] / point["total"], point["runs"], _says(point)]
            for point in sorted(report["points"], key=lambda point: float(point["rate"]))
        ],
    )
    page.heading("Goodput and throughput against the rate")
    page.chart(_lines(results, ("request_goodput", "request_throughput"), "requests/s", found))
    page.heading("Time to first token against the rate")
    page.chart(_lines(results, ("median_ttft_ms", "p99_ttft_ms"), "ms", found))
    page.heading("Time between messages against the rate")
    page.chart(_lines(results, ("median_itl_ms", "p99_itl_ms"), "ms", found))
    page.heading("Throughput against latency")
    page.chart(_throughput_against_latency(results))
    return page


def _says(point: Mapping[str, Any]) -> str:
    return ("met" if point["is_met"] else "failed") + ("" if point["is_sure"] else ", not sure")


def _lines(results: Sequence[Result], names: Sequence[str], unit: str, found: float | None) -> Figure:
    figure, axes = _figure("requests/s that arrived", unit)
    for name, colour in zip(names, COLOURS, strict=False):
        points = [(result["request_rate"], result[name]) for result in results if result.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name.removesuffix("_ms").replace("_", " "))
    if found is not None:
        axes.axvline(found, color="#555555", linewidth=1, linestyle="--", label="found")
    axes.legend(fontsize=8)
    return figure


def _throughput_against_latency(results: Sequence[Result]) -> Figure:
    figure, axes = _figure("tokens/s", "median time of a token after the first, ms")
    for result in results:
        if result.get("median_tpot_ms") is not None:
            axes.plot(result["output_throughput"], result["median_tpot_ms"], "o", color=COLOURS[0])
            axes.annotate(
                f"{result['request_rate']:.1f}/s",
                (result["output_throughput"], result["median_tpot_ms"]),
                fontsize=7,
                xytext=(4, 4),
                textcoords="offset points",
            )
    return figure


def _figure(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.margins(y=0.1)
    return figure, axes
