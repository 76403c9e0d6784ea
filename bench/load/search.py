"""Search: the highest rate at which enough requests are good, by bisection. A rate is tried again until its share of
good requests is surely above or below what is wanted, or it was tried often enough."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Z = 1.96  # of a confidence of 95 %
GROWTH = 2.0  # from one rate to the next until one fails
LEAST_RATE = 1e-3  # requests/s; below it nothing is tried

Try = Callable[[float, int], tuple[int, int]]  # rate, number of the run at it -> good requests, all requests


@dataclass(slots=True)
class Point:
    """What was seen at one rate, over all its runs."""

    rate: float
    wanted: float  # share of good requests
    good: int = 0
    total: int = 0
    runs: int = 0

    @property
    def share(self) -> float:
        return self.good / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the share (1927), as if requests were independent; a queue makes them less so, and the
        interval is then too narrow."""
        if not self.total:
            return 0.0, 1.0
        square = Z * Z / self.total
        middle = (self.share + square / 2) / (1 + square)
        half = Z * math.sqrt(self.share * (1 - self.share) / self.total + square / self.total / 4) / (1 + square)
        return max(middle - half, 0.0), min(middle + half, 1.0)

    @property
    def is_sure(self) -> bool:
        low, high = self.interval
        return low >= self.wanted or high < self.wanted

    @property
    def is_met(self) -> bool:
        return self.share >= self.wanted


@dataclass(frozen=True, slots=True)
class Found:
    rate: float | None  # the highest that met; None where the lowest did not
    points: list[Point]  # in the order in which they were tried


def find_rate(
    attempt: Try,
    wanted: float,
    *,
    start: float = 1.0,
    tolerance: float = 0.05,
    most_runs: int = 3,
    highest: float = 1e6,
) -> Found:
    """wanted: share of good requests. start: the first rate. tolerance: the bisection ends when the lowest rate that
    failed is at most so much above the highest that met. highest: a rate beyond it is not tried."""
    points: list[Point] = []
    met, failed = 0.0, math.inf
    rate = start
    while LEAST_RATE <= rate <= highest and failed > met * (1 + tolerance):
        point = _try(attempt, rate, wanted, most_runs)
        points.append(point)
        if point.is_met:
            met = rate
        else:
            failed = rate
        if math.isinf(failed):
            rate *= GROWTH
        else:
            rate = math.sqrt(met * failed) if met else rate / GROWTH
    return Found(met or None, points)


def _try(attempt: Try, rate: float, wanted: float, most_runs: int) -> Point:
    point = Point(rate, wanted)
    while point.runs < most_runs and not (point.runs and point.is_sure):
        good, total = attempt(rate, point.runs)
        point.good, point.total, point.runs = point.good + good, point.total + total, point.runs + 1
    return point
