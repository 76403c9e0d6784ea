"""Plots of the results of run.py: decode speed by rows for each peer, and speed with adapters beside speed without.

    python bench/peers/plot.py [bench/results/peers.json]

Writes peers_decode.png and peers_adapters.png beside the JSON.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

INCHES = (9.6, 4.8)
DPI = 150
BAR_GROUP = 0.8  # share of the space that a group of bars takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("json", nargs="?", type=Path, default=Path("bench/results/peers.json"))
    args = parser.parse_args()
    summary = json.loads(args.json.read_text())
    save(decode_plot(summary), args.json.with_name("peers_decode.png"))
    save(adapters_plot(summary), args.json.with_name("peers_adapters.png"))


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    print(path)


def decode_plot(summary: Mapping[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=INCHES, layout="constrained")
    for peer in summary["peers"]:
        points = [(case["rows"], speed) for case, speed in speeds(summary, peer) if not case["adapters"]]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=peer["title"])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    label_rows(axes, sorted({case["rows"] for case in summary["cases"]}))
    finish(axes, summary, "Base model")
    return figure


def adapters_plot(summary: Mapping[str, Any]) -> Figure:
    """Draws a group of bars for each case with adapters; behind each bar is the base model's speed on the same rows."""
    figure, axes = plt.subplots(figsize=INCHES, layout="constrained")
    cases = [case for case in summary["cases"] if case["adapters"]]
    bars = [bar for peer in summary["peers"] if (bar := adapter_bars(summary, peer, cases))]
    for index, (title, base, adapters) in enumerate(bars):
        width = BAR_GROUP / len(bars)
        places = [group - BAR_GROUP / 2 + width * (index + 0.5) for group in range(len(cases))]
        color = f"C{index}"
        if any(base):
            axes.bar(places, base, width, color=color, alpha=0.3, label=f"{title}, base")
        axes.bar(places, adapters, width * 0.6, color=color, label=f"{title}, adapters")
    axes.set_xticks(range(len(cases)), [case["name"].replace(", ", "\n") for case in cases])
    finish(axes, summary, "Rows with adapters (rank 16, all modules) and without")
    return figure


def adapter_bars(
    summary: Mapping[str, Any], peer: Mapping[str, Any], cases: list[Mapping[str, Any]]
) -> tuple[str, list[float], list[float]] | None:
    """Returns title, base speeds and speeds with adapters, 0 for a missing one; None for a peer that mixes no
    adapters."""
    found = {(case["rows"], case["adapters"]): speed for case, speed in speeds(summary, peer)}
    adapters = [found.get((case["rows"], case["adapters"]), 0.0) for case in cases]
    base = [found.get((case["rows"], 0), 0.0) for case in cases]
    return (peer["title"], base, adapters) if any(adapters) else None


def speeds(summary: Mapping[str, Any], peer: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], float]]:
    for case in summary["cases"]:
        result = peer["results"].get(case["key"])
        if result:
            yield case, result["median"]["decode"]


def label_rows(axes: Axes, rows: list[int]) -> None:
    axes.set_xticks(rows, [str(number) for number in rows])
    axes.set_xlabel("rows")


def finish(axes: Axes, summary: Mapping[str, Any], title: str) -> None:
    machine = summary["machine"]
    axes.set_title(f"{title}\n{machine['cpu']}, {machine['threads']} threads, bf16 (llama.cpp Q4_1)", fontsize="medium")
    axes.set_ylabel("decode tokens/s")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


if __name__ == "__main__":
    main()
