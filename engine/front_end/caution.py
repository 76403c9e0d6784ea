"""Cautions: how far outcomes were from what was predicted, for each tenant. Knows no request.

A prediction is never exact, so it is multiplied by a factor that keeps most outcomes below it. Each tenant has factors
of its own: the long prompts of a flood wait for everybody who comes after them, and these must not be refused for that.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

SLACK = 0.01  # seconds of messages between processes and of turns of the event loop


class Caution:
    """The factor below which most outcomes of predictions stay. It moves by a step after an outcome: up when the
    outcome exceeds it, and down so little otherwise that both balance when 1 of 32 does.

    What waits together is late together: a machine that stands still for a second says no more to ten requests than to
    one. So an outcome counts only if it was predicted after the last move."""

    STEP, SHARE, LEAST, MOST = 0.12, 32, 1.05, 6.0

    def __init__(self) -> None:
        self.factor = 1.1
        self._moved = -math.inf  # when

    def of(self, seconds: float) -> float:
        """Returns what most outcomes of a prediction do not exceed."""
        return seconds * self.factor + SLACK

    def note(self, predicted: float, seconds: float, predicted_at: float, now: float) -> None:
        if predicted_at < self._moved:
            return
        is_exceeded = seconds > self.of(predicted)
        change = 1 + self.STEP if is_exceeded else (1 + self.STEP) ** (-1 / (self.SHARE - 1))
        self.factor = min(max(self.factor * change, self.LEAST), self.MOST)
        self._moved = now


@dataclass(slots=True)
class TenantCaution:
    first_token: Caution = field(default_factory=Caution)
    token: Caution = field(default_factory=Caution)  # of the time between two tokens


class Cautions:
    def __init__(self, max_tenants: int) -> None:
        """max_tenants: that are remembered; the one that asked least lately is forgotten first."""
        self._max_tenants = max_tenants
        self._tenants: OrderedDict[str, TenantCaution] = OrderedDict()

    def of_tenant(self, name: str) -> TenantCaution:
        known = self._tenants.setdefault(name, TenantCaution())
        self._tenants.move_to_end(name)
        if len(self._tenants) > self._max_tenants:
            self._tenants.popitem(last=False)
        return known
