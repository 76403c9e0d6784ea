"""Result: the figures of a run under the keys of `vllm bench serve`, so that its scripts and dashboards carry over.

vLLM counts from the sending of a request. Here TTFT and E2EL count from its planned arrival, so that a client that sent
late, or a bound on the requests at once, hides no waiting; `sent_ttft` counts from the sending. TPOT is the time from
the first message with tokens to the last, by token after the first; ITL is the time between messages with tokens.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .record import OK, Record
from .summary import percentile

METRICS: dict[str, Callable[[Record], Iterable[float | None]]] = {
    "ttft": lambda record: [record.ttft],
    "sent_ttft": lambda record: [record.sent_ttft],
    "tpot": lambda record: [record.tpot],
    "itl": lambda record: record.gaps,
    "e2el": lambda record: [record.seconds],
}
GOAL_METRICS = ("ttft", "tpot", "e2el")


@dataclass(frozen=True, slots=True)
class Goal:
    """What makes a request good, in milliseconds by metric: `ttft`, `tpot` and `e2el`."""

    limits: Mapping[str, float] = field(default_factory=dict)

    def is_met(self, record: Record) -> bool:
        """A request that failed is never good; a metric that it has no value of is met."""
        return record.status == OK and all(
            (value or 0.0) * 1e3 <= limit for name, limit in self.limits.items() for value in METRICS[name](record)
        )


def result_of(
    records: Sequence[Record], goal: Goal, metrics: Sequence[str] = tuple(METRICS), percents: Sequence[float] = (99.0,)
) -> dict[str, Any]:
    """Returns plain data for JSON. The duration is from second 0 of the plan to the end of the last request."""
    duration = max((record.ended or 0.0 for record in records), default=0.0)
    finished = [record for record in records if record.status == OK]
    return {
        "duration": duration,
        **figures_of(records, goal, duration, metrics, percents),
        "max_output_tokens_per_s": _most_tokens_in_a_second(finished),
        "max_concurrent_requests": _most_at_once(records),
        **_spread("lag", [record.lag for record in records], percents),
    }


def figures_of(
    records: Sequence[Record], goal: Goal, duration: float, metrics: Sequence[str], percents: Sequence[float]
) -> dict[str, Any]:
    """Returns what also a part of a run has. duration: seconds over which rates are taken."""
    finished = [record for record in records if record.status == OK]
    good = sum(map(goal.is_met, records))
    num_input = sum(record.num_prompt_tokens for record in finished)
    num_output = sum(record.num_tokens for record in finished)
    return {
        "completed": len(finished),
        "failed": len(records) - len(finished),
        "statuses": dict(sorted(Counter(record.status for record in records).items())),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": _rate(len(finished), duration),
        "good": good,
        "request_goodput": _rate(good, duration) if goal.limits else None,
        "output_throughput": _rate(num_output, duration),
        "total_token_throughput": _rate(num_input + num_output, duration),
        **_spreads(finished, metrics, percents),
        **_spread("refusal", [r.seconds for r in records if r.status == "RESOURCE_EXHAUSTED"], percents),
    }


def _spreads(records: Sequence[Record], metrics: Sequence[str], percents: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in metrics:
        found |= _spread(name, [value for record in records for value in METRICS[name](record)], percents)
    return found


def _spread(name: str, values: Iterable[float | None], percents: Sequence[float]) -> dict[str, float]:
    """Returns mean, median, deviation and percentiles in milliseconds; nothing without values."""
    ordered = sorted(value * 1e3 for value in values if value is not None)
    if not ordered:
        return {}
    return {
        f"mean_{name}_ms": statistics.fmean(ordered),
        f"median_{name}_ms": percentile(ordered, 50),
        f"std_{name}_ms": statistics.pstdev(ordered),
        **{f"p{percent:g}_{name}_ms": percentile(ordered, percent) for percent in percents},
    }


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def _most_tokens_in_a_second(records: Iterable[Record]) -> float:
    """Counts by whole seconds of the run, as vLLM does."""
    seconds: Counter[int] = Counter()
    for record in records:
        for moment, count in zip(record.token_times, record.token_counts, strict=True):
            seconds[int(moment)] += count
    return float(max(seconds.values(), default=0))


def _most_at_once(records: Iterable[Record]) -> int:
    """The most requests that were sent and had not ended."""
    changes = [(record.sent, 1) for record in records if record.sent is not None]
    changes += [(record.ended, -1) for record in records if record.sent is not None and record.ended is not None]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
