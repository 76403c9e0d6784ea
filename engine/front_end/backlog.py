"""Backlog: the requests that wait for their first token, as loads in the order in which the scheduler serves them.

It mirrors that order: a smaller priority value first; within a priority fair shares of the tenants, and of the adapters
of each tenant. So a request waits for the share of the others only, however much they have sent. Tenants share two
things: the tokens of prompts that steps compute, where the counters of what each has received decide and a tenant that
asked for less goes first (the scheduler's PromptShares); and seats, by the whole service of the requests. Knows no
time.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
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
    load: Load = NOTHING  # that waits
    num_waiting: int = 0
    running: Load = NOTHING  # of requests that wait no more and have not ended
    num_running: int = 0
    parts: "dict[Hashable, _Party]" = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not self.num_waiting and not self.num_running

    def expected(self, coming: float) -> Load:
        return self.load.plus(self.running.times(coming)) if coming and self.num_running else self.load

    def wait(self, load: Load) -> None:
        self.load, self.num_waiting = self.load.plus(load), self.num_waiting + 1

    def stop_waiting(self, load: Load) -> None:
        self.num_waiting -= 1
        self.load = self.load.plus(load.times(-1)) if self.num_waiting else NOTHING

    def run(self, load: Load) -> None:
        self.running, self.num_running = self.running.plus(load), self.num_running + 1

    def stop_running(self, load: Load) -> None:
        self.num_running -= 1
        self.running = self.running.plus(load.times(-1)) if self.num_running else NOTHING

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
            party.wait(load)

    def serve(self, place: Place, load: Load) -> None:
        """Has a load that was added run: it was computed for its tenant."""
        self._shares.charge(place.party, load.num_prompt_tokens)
        for party in self._path(place):
            party.run(load)
        self.remove(place, load)

    def remove(self, place: Place, load: Load) -> None:
        """Removes a load that waits."""
        path = list(self._path(place))
        for party in path:
            party.stop_waiting(load)
        if not path[-2].num_waiting:
            self._shares.leave(place.party)
        _forget_empty(path, place)

    def end(self, place: Place, load: Load) -> None:
        """Removes a load that runs."""
        path = list(self._path(place))
        for party in path:
            party.stop_running(load)
        _forget_empty(path, place)

    def _path(self, place: Place) -> Iterator[_Party]:
        yield self._all
        yield (lane := self._all.part(place.urgency))
        yield (tenant := lane.part(place.tenant, place.weights[0]))
        yield tenant.part(place.flow, place.weights[1])

    def _lane(self, place: Place) -> _Party:
        return self._all.parts.get(place.urgency, _Party())

    def ahead(self, place: Place, own: Load, coming: float = 0.0) -> Load:
        """Returns the load that is served before a new request of this place has been. own: of the request. coming:
        how many times what the tenant's other flows have running is expected to come meanwhile: it can be served
        earlier, up to their shares."""
        load = NOTHING
        for urgency, party in self._all.parts.items():
            if isinstance(urgency, int) and urgency < place.urgency:
                load = load.plus(party.load)
        lane = self._lane(place)
        tenant = lane.parts.get(place.tenant, _Party())
        flow = tenant.parts.get(place.flow, _Party())
        of_tenant = flow.load.plus(_served_meanwhile(tenant, place.flow, flow.load.plus(own), place.weights[1], coming))
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


def _served_meanwhile(whole: _Party, own: Hashable, served: Load, weight: float, coming: float = 0.0) -> Load:
    """Returns the load of the other parts of a whole that is served while one part receives so much service. coming:
    as `Backlog.ahead` has it."""
    share = served.service / weight
    loads = ((part, part.expected(coming)) for key, part in whole.parts.items() if key != own)
    return _sum((load, share * part.weight / max(load.service, 1.0)) for part, load in loads)


def _forget_empty(path: Sequence[_Party], place: Place) -> None:
    for whole, key, part in zip(path, _keys(place), path[1:], strict=False):
        if part.is_empty:
            del whole.parts[key]


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
    counts = (party.num_waiting, party.num_running)
    parts = party.parts.values()
    if parts and counts != (sum(part.num_waiting for part in parts), sum(part.num_running for part in parts)):
        raise RuntimeError(f"{counts} requests wait and run, but the parts of the backlog count others")
    for part in parts:
        if part.is_empty:
            raise RuntimeError("a part of the backlog is kept without a request")
        _check(part)
