"""Arrivals: the seconds at which requests arrive, by the formulas of `vllm bench serve`.

Gaps are drawn from a gamma distribution of shape `burstiness` and mean 1 / rate: 1 is a Poisson process, less comes in
bursts, more is steadier. They are scaled so that the last request of n arrives at n / rate: a run then takes as long
for each seed. A ramp changes the rate with the number of the request, and nothing is scaled.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

RampKind = Literal["linear", "exponential"]
RAMPS: tuple[RampKind, ...] = ("linear", "exponential")


@dataclass(frozen=True, slots=True)
class Ramp:
    """Requests per second from the first request to the last."""

    kind: RampKind
    start: float
    end: float

    def rate(self, share: float) -> float:
        """share: of the requests that have arrived, from 0 to 1."""
        if self.kind == "linear":
            return self.start + (self.end - self.start) * share
        return float(self.start * (self.end / self.start) ** share)


def arrival_seconds(
    count: int, rate: float, burstiness: float = 1.0, seed: int = 0, ramp: Ramp | None = None
) -> list[float]:
    """Returns the second at which each request arrives. An infinite rate: all at once."""
    check_rates(rate, burstiness, ramp)
    draw = random.Random(f"arrivals {seed}")
    seconds = list(accumulate(_gaps(count, rate, burstiness, ramp, draw)))
    if ramp is not None or not seconds or not seconds[-1]:
        return seconds
    factor = count / rate / seconds[-1]
    return [second * factor for second in seconds]


def check_rates(rate: float, burstiness: float, ramp: Ramp | None) -> None:
    """Raises ValueError for what has no meaning."""
    if not rate > 0:
        raise ValueError(f"the request rate is {rate}; it has to be above 0")
    if not burstiness > 0:
        raise ValueError(f"the burstiness is {burstiness}; it has to be above 0")
    if ramp is not None and not (0 < ramp.start < math.inf and 0 < ramp.end < math.inf):
        raise ValueError(f"the ramp goes from {ramp.start} to {ramp.end} requests/s; both have to be above 0")


def _gaps(count: int, rate: float, burstiness: float, ramp: Ramp | None, draw: random.Random) -> Iterator[float]:
    for number in range(count):
        now = rate if ramp is None else ramp.rate(number / max(count - 1, 1))
        if math.isinf(now):
            yield 0.0
        elif math.isinf(burstiness):
            yield 1 / now
        else:
            yield draw.gammavariate(burstiness, 1 / (now * burstiness))
