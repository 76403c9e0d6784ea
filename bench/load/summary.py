"""Summary: figures of a run's records, with the names of `vllm bench serve` where it has the same figure.

A request is good if it ended OK, its first token came within the objective's time after the planned arrival, and its
later tokens took no longer than the objective's time each, on average.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .record import OK, Record

PERCENTILES = (50, 90, 95, 99)
REFUSED = "RESOURCE_EXHAUSTED"


@dataclass(frozen=True, slots=True)
class Objective:
    """Seconds that a good request may take, for its first token and for each token after it."""

    ttft: float = 1.0
    itl: float = 0.1

    def is_met(self, record: Record) -> bool:
        ttft, itl = record.ttft, record.token_seconds
        return record.status == OK and ttft is not None and ttft <= self.ttft and (itl or 0.0) <= self.itl


def summarize(records: Sequence[Record], seconds: float, objective: Objective) -> dict[str, Any]:
    """Returns plain data for JSON. seconds: the length of the plan, over which rates are taken."""
    finished = [record for record in records if record.status == OK]
    refused = [record for record in records if record.status == REFUSED]
    good = sum(map(objective.is_met, records))
    return {
        "duration": seconds,
        "requests": len(records),
        "completed": len(finished),
        "failed": len(records) - len(finished),
        "statuses": dict(Counter(record.status for record in records)),
        "good": good,
        "request_rate": len(records) / seconds,
        "request_throughput": len(finished) / seconds,
        "request_goodput": good / seconds,
        "total_output_tokens": sum(record.num_tokens for record in records),
        "output_throughput": sum(record.num_tokens for record in records) / seconds,
        **_spread("ttft", (record.ttft for record in finished)),
        **_spread("tpot", (record.token_seconds for record in finished)),
        **_spread("itl", (gap for record in finished for gap in record.gaps)),
        **_spread("e2el", (record.seconds for record in finished)),
        **_spread("refusal", (record.seconds for record in refused)),
        **_spread("lag", (record.lag for record in records)),
    }


def by(
    records: Sequence[Record], key: Callable[[Record], str], seconds: float, objective: Objective
) -> Mapping[str, dict[str, Any]]:
    """Returns a summary for each value of the key, such as the tenant."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return {name: summarize(group, seconds, objective) for name, group in sorted(groups.items())}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Returns a percentile of sorted values, between two of them where it falls there, as numpy's does by default."""
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _spread(name: str, values: Iterable[float | None]) -> dict[str, float]:
    """Returns mean, percentiles and maximum in milliseconds; nothing without values."""
    ordered = sorted(value * 1e3 for value in values if value is not None)
    if not ordered:
        return {}
    percentiles = {f"p{percent}_{name}_ms": percentile(ordered, percent) for percent in PERCENTILES}
    return {f"mean_{name}_ms": statistics.fmean(ordered), **percentiles, f"max_{name}_ms": ordered[-1]}
