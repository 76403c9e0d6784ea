"""The simulated traces have their shape, and fair shares help the many adapters with few requests."""

import statistics
from pathlib import Path

import pytest

from blora.bench.fairness import draw, format_report, measure
from blora.bench.trace import TraceShape, make_trace

pytestmark = pytest.mark.slow


def test_a_trace_has_the_rate_and_the_popularity_that_were_asked_for() -> None:
    trace = make_trace(TraceShape(adapters=10, rate=50, seconds=100, alpha=1.0, cv=2.0))
    counts = [sum(arrival.adapter == adapter for arrival in trace) for adapter in range(10)]
    assert len(trace) == pytest.approx(5000, rel=0.1)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.25)
    assert all(one.seconds <= other.seconds for one, other in zip(trace, trace[1:], strict=False))


def test_fair_shares_shorten_the_wait_of_most_adapters(tmp_path: Path) -> None:
    report = measure(adapters=100, rate=8.0, seconds=50, seed=1)
    medians = {
        (entry["trace"]["alpha"], entry["policy"]): statistics.median(entry["ttft_s_of_adapters"])
        for entry in report["runs"]
    }
    assert medians[1.0, "fair"] < 0.7 * medians[1.0, "fcfs"]
    assert "alpha 0.3, fair" in format_report(report)
    assert draw(report, tmp_path).stat().st_size > 10_000
