"""Backlog: the requests that wait for their first token, as loads in the order in which the scheduler serves them.

It mirrors that order: a smaller priority value first; within a priority fair shares of the tenants, and of the adapters
of each tenant. So a request waits for the share of the others only, however much they have sent. Tenants share two
things: the tokens of prompts that steps compute, where the counters of what each has received decide and a tenant that
asked for less goes first (the scheduler's PromptShares); and seats, by the whole service of the requests. Knows no
time.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from blora.scheduler import PromptShares


class Load(NamedTuple):
    """What requests ask for, together."""

    num_rows: float = 0
    num_prompt_tokens: float = 0
    num_pairs: float = 0  # of a token of a prompt and one that it attends to
    service: float = 0  # priced tokens, as the scheduler's fair shares count them
    num_scored_tokens: float = 0  # of the prompts: their logprobs are told

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

    @property
    def party(self) -> tuple[int, str]:
        return (self.urgency, self.tenant)


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
        self._shares = PromptShares()

    @property
    def load(self) -> Load:
        return self._all.load

    def place(self, priority: int, tenant: str, flow: Hashable, weights: tuple[float, float]) -> Place:
        urgency = priority if self._has_priorities else 0
        return Place(urgency, tenant, flow, weights) if self._is_fair else Place(urgency, "", (), (1.0, 1.0))

    def add(self, place: Place, load: Load) -> None:
        self._shares.enter(place.party, place.weights[0])
        for party in self._path(place):
            party.load = party.load.plus(load)
            party.num_requests += 1

    def serve(self, place: Place, load: Load) -> None:
        """Counts a load that was computed for its tenant."""
        self._shares.charge(place.party, load.num_prompt_tokens)

    def remove(self, place: Place, load: Load) -> None:
        """Removes a load that was added."""
        path = list(self._path(place))
        for party in path:
            party.num_requests -= 1
            party.load = party.load.plus(load.times(-1)) if party.num_requests else NOTHING
        for whole, key, part in zip(path, _keys(place), path[1:], strict=False):
            if not part.num_requests:
                del whole.parts[key]
        if place.tenant not in self._lane(place).parts:
            self._shares.leave(place.party)

    def _path(self, place: Place) -> Iterator[_Party]:
        yield self._all
        yield (lane := self._all.part(place.urgency))
        yield (tenant := lane.part(place.tenant, place.weights[0]))
        yield tenant.part(place.flow, place.weights[1])

    def _lane(self, place: Place) -> _Party:
        return self._all.parts.get(place.urgency, _Party())

    def ahead(self, place: Place, own: Load) -> Load:
        """Returns the load that is served before a new request of this place has been. own: of the request."""
        load = NOTHING
        for urgency, party in self._all.parts.items():
            if isinstance(urgency, int) and urgency < place.urgency:
                load = load.plus(party.load)
        lane = self._lane(place)
        tenant = lane.parts.get(place.tenant, _Party())
        flow = tenant.parts.get(place.flow, _Party())
        of_tenant = flow.load.plus(_served_meanwhile(tenant, place.flow, flow.load.plus(own), place.weights[1]))
        return load.plus(of_tenant).plus(self._served_meanwhile(lane, place, of_tenant.plus(own)))

    def _served_meanwhile(self, lane: _Party, place: Place, served: Load) -> Load:
        """Returns the load of other tenants that is served while a place's tenant is served a load."""
        of_seats = _served_meanwhile(lane, place.tenant, served, place.weights[0])
        received = self._shares.received(place.party) + served.num_prompt_tokens / place.weights[0]
        of_prompts = _sum(
            (party.load, party.weight * (received - self._shares.received((place.urgency, tenant))) / _tokens(party))
            for tenant, party in lane.parts.items()
            if isinstance(tenant, str) and tenant != place.tenant
        )
        return of_prompts._replace(num_rows=of_seats.num_rows, service=of_seats.service)

    def check_integrity(self) -> None:
        """Raises RuntimeError when a party counts other requests than its parts do."""
        self._shares.check_integrity()
        _check(self._all)


def _keys(place: Place) -> tuple[Hashable, ...]:
    return (place.urgency, place.tenant, place.flow)


def _served_meanwhile(whole: _Party, own: Hashable, served: Load, weight: float) -> Load:
    """Returns the load of the other parts of a whole that is served while one part receives so much service."""
    share = served.service / weight
    return _sum(
        (part.load, share * part.weight / max(part.load.service, 1.0))
        for key, part in whole.parts.items()
        if key != own
    )


def _tokens(party: _Party) -> float:
    return max(party.load.num_prompt_tokens, 1.0)


def _sum(parts: Iterable[tuple[Load, float]]) -> Load:
    """Returns a share of each load together; from 0 to 1. It is called with hundreds of loads for each request."""
    rows = tokens = pairs = service = scored = 0.0
    for load, share in parts:
        share = min(max(share, 0.0), 1.0)
        rows += share * load.num_rows
        tokens += share * load.num_prompt_tokens
        pairs += share * load.num_pairs
        service += share * load.service
        scored += share * load.num_scored_tokens
    return Load(rows, tokens, pairs, service, scored)


def _check(party: _Party) -> None:
    if party.parts and party.num_requests != sum(part.num_requests for part in party.parts.values()):
        raise RuntimeError(f"{party.num_requests} requests wait, but the parts of the backlog count others")
    for part in party.parts.values():
        if not part.num_requests:
            raise RuntimeError("a part of the backlog is kept without a request")
        _check(part)
