"""Metrics: the counts of an engine under the names that vLLM gives them, and tallies, which count values by size.

Plain data. Who exposes it, and in which format, is the matter of telemetry/.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .outputs import EngineInfo


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """A number that only grows while the engine lives."""

    value: int


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """A number that goes up and down."""

    value: float


def metrics_of(info: EngineInfo) -> list[Metric]:
    labels = {"model_name": info.model, "engine": "0"}
    gauges = {
        "vllm:num_requests_running": info.num_running,
        "vllm:num_requests_waiting": info.num_waiting,
        "vllm:kv_cache_usage_perc": 1 - info.num_free_pages / info.num_pages,  # adapters in use included
    }
    counters = {
        "vllm:num_preemptions": info.num_preemptions,
        "vllm:prompt_tokens": info.num_prompt_tokens,
        "vllm:prompt_tokens_cached": info.num_cached_tokens,
        "vllm:prefix_cache_queries": info.num_prompt_tokens,
        "vllm:prefix_cache_hits": info.num_cached_tokens,
        "vllm:generation_tokens": info.num_generated_tokens,
    }
    return [
        *(Gauge(name, labels, value) for name, value in gauges.items()),
        *(Counter(name, labels, value) for name, value in counters.items()),
    ]


class Tally:
    """The data of a histogram: how many values lie up to each bound and above the one before, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: ascending; values above the last one are counted, too."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def note(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def num(self) -> int:
        """The number of values."""
        return sum(self.counts)
