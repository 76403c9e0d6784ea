"""Plots of a sweep: decode throughput by rows, and the speed with adapters against the base model's by their number and
by rows.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

Point = Mapping[str, Any]
SIZE = (7.0, 4.2)  # inches
DPI = 130
BASE_COLOUR = "#555555"
COLOURS = {"uniform": "#0072b2", "skewed": "#e69f00", "identical": "#009e73", "decode": "#0072b2", "prefill": "#cc79a7"}


def run(args: argparse.Namespace) -> int:
    for path in draw(json.loads(args.file.read_text()), args.file.parent):
        print(path)
    return 0


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes three PNGs from a report of `sweep`; returns their paths."""
    rows = over_rows(report["points"])
    plots = {
        "throughput-rows.png": _rows_figure(report, rows),
        "throughput-adapters.png": _adapters_figure(report, report["points"]),
        "adapters-against-base.png": _ratio_figure(report, rows),
    }
    for name, figure in plots.items():
        figure.savefig(folder / name, dpi=DPI)
    return [folder / name for name in plots]


def over_rows(points: Sequence[Point]) -> list[Point]:
    """Returns the points of the sweep over rows: the uniform points with as many adapters as the first point of all."""
    wanted = {"popularity": "uniform", "adapters": points[0]["workload"]["adapters"]}
    return _sorted([point for point in points if wanted.items() <= point["workload"].items()], "rows")


def over_adapters(points: Sequence[Point], popularity: str) -> list[Point]:
    """Returns the points of one popularity with as many rows as the last point of all, by number of adapters."""
    rows = points[-1]["workload"]["rows"]
    wanted = {"popularity": popularity, "rows": rows}
    return _sorted([point for point in points if wanted.items() <= point["workload"].items()], "adapters")


def _sorted(points: Sequence[Point], name: str) -> list[Point]:
    return sorted(points, key=lambda point: int(point["workload"][name]))


def _values(points: Sequence[Point], name: str) -> list[int]:
    return [point["workload"][name] for point in points]


def _medians(points: Sequence[Point], variant: str, figure: str) -> list[float]:
    return [point["median"][variant][figure] for point in points]


def _figure(report: Mapping[str, Any], title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{report['model_id']}, {report['dtype']}: {title}", fontsize=10)
    axes.grid(alpha=0.3)
    machine = report["machine"]
    figure.supxlabel(f"{machine['cpu']}, {machine['threads']} threads, {machine['instruction_set']}", fontsize=7)
    return figure, axes


def _log_axis(axes: Axes, values: Sequence[int], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(values)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel(label)


def _rows_figure(report: Mapping[str, Any], points: Sequence[Point]) -> Figure:
    figure, axes = _figure(report, "throughput and rows")
    rows = _values(points, "rows")
    adapters = points[0]["workload"]["adapters"]
    ranks = " and ".join(map(str, report["ranks"]))
    for variant, label, colour in (
        ("base", "base model", BASE_COLOUR),
        ("adapters", f"{adapters} adapters of rank {ranks}", COLOURS["uniform"]),
    ):
        axes.plot(rows, _medians(points, variant, "decode_throughput"), "o-", color=colour, label=label)
    _log_axis(axes, rows, "rows")
    axes.set_ylabel("decode tokens/s")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _adapters_figure(report: Mapping[str, Any], points: Sequence[Point]) -> Figure:
    """Draws the ratios of passes that followed each other, because a machine's speed drifts: median and range of
    rounds."""
    rows = points[-1]["workload"]["rows"]
    figure, axes = _figure(report, f"{rows} rows with adapters, the base model's speed is 1")
    for popularity in ("uniform", "skewed", "identical"):
        chosen = over_adapters(points, popularity)
        medians = _medians(chosen, "ratio", "decode_throughput")
        rounds = [[one["ratio"]["decode_throughput"] for one in point["rounds"]] for point in chosen]
        ranges = (
            [median - min(ratios) for median, ratios in zip(medians, rounds, strict=True)],
            [max(ratios) - median for median, ratios in zip(medians, rounds, strict=True)],
        )
        adapters, colour = _values(chosen, "adapters"), COLOURS[popularity]
        axes.errorbar(adapters, medians, ranges, fmt="o-", color=colour, label=popularity, elinewidth=0.7, capsize=2)
    axes.axhline(1, color=BASE_COLOUR, linewidth=1)
    _log_axis(axes, _values(over_adapters(points, "uniform"), "adapters"), "adapters")
    axes.set_ylabel("decode tokens/s, of the base model's")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _ratio_figure(report: Mapping[str, Any], points: Sequence[Point]) -> Figure:
    adapters = points[0]["workload"]["adapters"]
    figure, axes = _figure(report, f"speed with {adapters} adapters, the base model's is 1")
    width = 0.4
    for index, name in enumerate(("decode", "prefill")):
        places = [place + (index - 0.5) * width for place in range(len(points))]
        axes.bar(places, _medians(points, "ratio", f"{name}_throughput"), width, color=COLOURS[name], label=name)
    axes.axhline(1, color=BASE_COLOUR, linewidth=1)
    axes.set_xticks(range(len(points)), labels=list(map(str, _values(points, "rows"))))
    axes.set_xlabel("rows")
    axes.legend(loc="lower right")
    return figure
