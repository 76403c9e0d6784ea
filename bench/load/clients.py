"""Clients: shares of the clients that do not wait for their answers, or read them slowly."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .plan import Planned


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """Shares are of all requests, and one client does one of these things."""

    cancelling: float = 0.0  # leave after a number of tokens, even over the answer
    leaving: float = 0.0  # break off at a time, even over `leave_within` from the arrival, tokens or none
    slow: float = 0.0  # rest `read_pause` after each message
    leave_within: float = 2.0  # seconds
    read_pause: float = 0.2  # seconds

    def behave(self, plan: Iterable[Planned], seed: int) -> list[Planned]:
        """Returns the plan with what its clients do. Raises ValueError for shares of more than all."""
        shares = (self.cancelling, self.leaving, self.slow)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"the shares of clients are {shares}; they have to be from 0 to 1 together")
        source = random.Random(f"clients {seed}")
        return [self._behave(planned, source) for planned in plan]

    def _behave(self, planned: Planned, source: random.Random) -> Planned:
        chance, depth = source.random(), source.random()
        if chance < self.cancelling:
            return replace(planned, cancel_after=1 + int(depth * planned.max_tokens))
        if chance < self.cancelling + self.leaving:
            return replace(planned, cancel_seconds=depth * self.leave_within)
        if chance < self.cancelling + self.leaving + self.slow:
            return replace(planned, read_pause=self.read_pause)
        return planned
