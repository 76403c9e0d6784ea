"""Charts of one run. Colours are told apart by people who see red and green alike (Okabe and Ito, 2008)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ..load import Record
from ..load.record import OK
from ..load.summary import REFUSED

WIDTH = 9.0  # inches
WAITING, DECODING, REFUSALS, FAILURES = "#e69f00", "#0072b2", "#cc79a7", "#d55e00"
MOST_LINES = 3000  # of a timeline: more are not told apart
WINDOWS = 40  # of a run, over which a median is taken


def timeline(records: Sequence[Record]) -> Figure:
    """Requests by planned arrival, from below; what was refused or failed has a mark at its end."""
    figure, axes = _figure(4.5)
    shown = records[:: max(len(records) // MOST_LINES, 1)]
    waits, decodes = [], []
    for row, record in enumerate(shown):
        first = record.token_times[0] if record.token_times else record.ended
        waits.append([(record.planned.seconds, row), (first or record.planned.seconds, row)])
        if record.token_times and record.ended is not None:
            decodes.append([(record.token_times[0], row), (record.ended, row)])
    axes.add_collection(LineCollection(waits, colors=WAITING, linewidths=0.8, label="until the first token"))
    axes.add_collection(LineCollection(decodes, colors=DECODING, linewidths=0.8, label="until the end"))
    for label, colour, is_shown in (
        ("refused", REFUSALS, lambda record: record.status == REFUSED),
        ("failed", FAILURES, lambda record: record.status not in (OK, REFUSED)),
    ):
        ends = [(record.ended or 0.0, row) for row, record in enumerate(shown) if is_shown(record)]
        if ends:
            axes.plot(*zip(*ends, strict=True), ".", color=colour, markersize=3, label=label)
    axes.autoscale()
    axes.set_xlabel("seconds of the run")
    axes.set_ylabel("requests, by planned arrival")
    _explain(axes)
    return figure


def over_time(records: Sequence[Record]) -> Figure:
    figure, axes = _figure(3.2)
    answered = [(r.planned.seconds, r.ttft * 1e3) for r in records if r.ttft is not None and r.status == OK]
    if answered:
        axes.plot(
            *zip(*answered, strict=True), ".", color=DECODING, markersize=2, alpha=0.5, label="time to first token"
        )
        axes.plot(*_medians(answered), color=WAITING, label="its median")
    axes.set_xlabel("planned arrival, seconds")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    beside = axes.twinx()
    beside.step(*_at_once(records), where="post", color="#888888", linewidth=0.8)
    beside.set_ylabel("requests at once")
    beside.set_ylim(bottom=0)
    _explain(axes)
    return figure


def gaps(records: Iterable[Record]) -> Figure:
    """The share of gaps that are no longer than a time."""
    figure, axes = _figure(3.0)
    ordered = sorted(gap * 1e3 for record in records if record.status == OK for gap in record.gaps)
    if ordered:
        axes.plot(ordered, [(place + 1) / len(ordered) for place in range(len(ordered))], color=DECODING)
        axes.set_xscale("log")
    axes.set_xlabel("ms between messages with tokens")
    axes.set_ylabel("share of gaps")
    axes.set_ylim(0, 1.01)
    return figure


def groups(found: Mapping[str, Mapping[str, Any]], kind: str) -> Figure:
    """Time to first token against the share of requests that a group has."""
    figure, axes = _figure(3.2)
    for name, colour in (("p99", WAITING), ("p50", DECODING)):
        points = [(group["share"], group[f"{name}_ttft_ms"]) for group in found.values() if f"{name}_ttft_ms" in group]
        if points:
            axes.plot(
                *zip(*points, strict=True), "o", color=colour, markersize=4, label=f"{name} of time to first token"
            )
    axes.set_xscale("log")
    axes.set_xlabel(f"share of the requests, one point for each of the {kind}")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    _explain(axes)
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _explain(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", fontsize=8)


def _medians(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Medians over windows of as many points."""
    ordered = sorted(points)
    size = max(len(ordered) // WINDOWS, 1)
    windows = [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]
    middles = [sorted(value for _, value in window)[len(window) // 2] for window in windows]
    return [window[len(window) // 2][0] for window in windows], middles


def _at_once(records: Iterable[Record]) -> tuple[list[float], list[int]]:
    """The number of requests that were sent and had not ended, at each time that it changed."""
    changes = [(record.sent, 1) for record in records if record.sent is not None]
    changes += [(record.ended, -1) for record in records if record.sent is not None and record.ended is not None]
    seconds, counts, now = [0.0], [0], 0
    for second, change in sorted(changes):
        now += change
        seconds.append(second)
        counts.append(now)
    return seconds, counts
