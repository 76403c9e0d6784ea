"""Backlog: the requests that wait for their first token, as loads in the order in which the scheduler serves them.

It mirrors that order: a smaller priority value first; within a priority fair shares of the tenants, and of the adapters
of each tenant. So a request waits for the share of the others only, however much they have sent. Knows no time.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Load(NamedTuple):
    """What requests ask for, together."""

    num_rows: float = 0
    num_prompt_tokens: float = 0
    num_pairs: float = 0  # of a token of a prompt and one that it attends to
    service: float = 0  # priced tokens, as the scheduler's fair shares count them

    def plus(self, other: "Load") -> "Load":
        return Load(*(one + another for one, another in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Load":
        return Load(*(amount * factor for amount in self))


NOTHING = Load()


class Place(NamedTuple):
    """Where a request waits."""

    urgency: int  # a smaller one is served earlier
    tenant: str
    flow: Hashable  # its adapters
    weights: tuple[float, float]  # of the tenant among tenants, of the flow among the tenant's


@dataclass(slots=True)
class _Party:
    """Requests that share service: all of an urgency, of a tenant or of a flow."""

    weight: float = 1.0
    load: Load = NOTHING
    num_requests: int = 0
    parts: "dict[Hashable, _Party]" = field(default_factory=dict)

    def part(self, key: Hashable, weight: float = 1.0) -> "_Party":
        part = self.parts.setdefault(key, _Party())
        part.weight = weight
        return part


class Backlog:
    def __init__(self, policy: str) -> None:
        """policy: one of the scheduler's POLICIES."""
        self._has_priorities = policy != "fcfs"
        self._is_fair = policy == "fair"
        self._all = _Party()

    @property
    def load(self) -> Load:
        return self._all.load

    def place(self, priority: int, tenant: str, flow: Hashable, weights: tuple[float, float]) -> Place:
        urgency = priority if self._has_priorities else 0
        return Place(urgency, tenant, flow, weights) if self._is_fair else Place(urgency, "", (), (1.0, 1.0))

    def add(self, place: Place, load: Load) -> None:
        for party in self._path(place):
            party.load = party.load.plus(load)
            party.num_requests += 1

    def remove(self, place: Place, load: Load) -> None:
        """Removes a load that was added."""
        path = list(self._path(place))
        for party in path:
            party.num_requests -= 1
            party.load = party.load.plus(load.times(-1)) if party.num_requests else NOTHING
        for whole, key, part in zip(path, _keys(place), path[1:], strict=False):
            if not part.num_requests:
                del whole.parts[key]

    def _path(self, place: Place) -> Iterator[_Party]:
        yield self._all
        yield (lane := self._all.part(place.urgency))
        yield (tenant := lane.part(place.tenant, place.weights[0]))
        yield tenant.part(place.flow, place.weights[1])

    def ahead(self, place: Place, own: Load) -> Load:
        """Returns the load that is served before a new request of this place has been. own: of the request."""
        load = NOTHING
        for urgency, party in self._all.parts.items():
            if isinstance(urgency, int) and urgency < place.urgency:
                load = load.plus(party.load)
        lane = self._all.parts.get(place.urgency, _Party())
        tenant = lane.parts.get(place.tenant, _Party())
        flow = tenant.parts.get(place.flow, _Party())
        of_tenant = flow.load.plus(_served_meanwhile(tenant, place.flow, flow.load.plus(own), place.weights[1]))
        of_lane = of_tenant.plus(_served_meanwhile(lane, place.tenant, of_tenant.plus(own), place.weights[0]))
        return load.plus(of_lane)

    def check_integrity(self) -> None:
        """Raises RuntimeError when a party counts other requests than its parts do."""
        _check(self._all)


def _keys(place: Place) -> tuple[Hashable, ...]:
    return (place.urgency, place.tenant, place.flow)


def _served_meanwhile(whole: _Party, own: Hashable, served: Load, weight: float) -> Load:
    """Returns the load of the other parts of a whole that is served while one part receives so much service."""
    share = served.service / weight
    load = NOTHING
    for key, part in whole.parts.items():
        if key != own:
            load = load.plus(part.load.times(min(1.0, share * part.weight / max(part.load.service, 1.0))))
    return load


def _check(party: _Party) -> None:
    if party.parts and party.num_requests != sum(part.num_requests for part in party.parts.values()):
        raise RuntimeError(f"{party.num_requests} requests wait, but the parts of the backlog count others")
    for part in party.parts.values():
        if not part.num_requests:
            raise RuntimeError("a part of the backlog is kept without a request")
        _check(part)
