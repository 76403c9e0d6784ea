"""WaitingQueue: accepted requests in order of service. Owns the order, nothing else.

A request of a smaller priority value always comes first; each priority has a lane of its own. Without fairness a lane
has one flow, which is first come, first served.
"""

from collections.abc import Collection, Hashable, Iterator
from itertools import chain, islice

from .fair_share import Fairness
from .lane import Lane
from .request import Request

ServiceOrder = tuple[int, bool, int]  # sort key of a request: a smaller one is served earlier
Party = tuple[int, str]  # urgency, and the tenant if tenants have shares
POLICIES = ("fair", "fcfs", "priority")
LOOK_AHEAD = 16  # most requests that `choices` or `upcoming` returns


class WaitingQueue:
    def __init__(self, policy: str, fairness: Fairness) -> None:
        """policy: "fcfs" (order of arrival), "priority" (lower priority value first, then order of arrival) or "fair"
        (lower priority value first, then fair shares of tenants and adapters)."""
        if policy not in POLICIES:
            raise ValueError(f"scheduling policy {policy!r} is not one of {', '.join(POLICIES)}")
        self._has_priorities = policy != "fcfs"
        self._is_fair = policy == "fair"
        self._fairness = fairness
        self._lanes: dict[int, Lane] = {}  # urgency -> its lane
        self._waiting: set[int] = set()

    def order(self, request: Request) -> ServiceOrder:
        """Returns the sort key of a running request: the last request in this order is preempted first."""
        return (self.urgency(request), not request.is_overdue, request.arrival)

    def urgency(self, request: Request) -> int:
        return request.priority if self._has_priorities else 0

    def push(self, request: Request) -> None:
        lane = self._lanes.get(self.urgency(request))
        if lane is None:
            lane = self._lanes[self.urgency(request)] = Lane(self._fairness.max_passed_over)
        lane.push(request, *self._flow(request))
        self._waiting.add(request.request_id)

    def party(self, request: Request) -> Party:
        """Returns the party that a request's service is counted for: urgency, and tenant if tenants have shares."""
        return (self.urgency(request), request.tenant if self._is_fair else "")

    def _flow(self, request: Request) -> tuple[str, Hashable]:
        return (request.tenant, tuple(digest for digest, _ in request.adapters)) if self._is_fair else ("", ())

    def _lanes_in_order(self) -> Iterator[Lane]:
        return (self._lanes[urgency] for urgency in sorted(self._lanes))

    def choices(self, present: Collection[Party] = ()) -> list[Request]:
        """Returns the requests that may be served next, in order of service: the first requests of some flows of the
        first lane with waiting requests. An overdue request leaves no choice but itself. present: parties whose
        requests are left out."""
        lane = next((lane for lane in self._lanes_in_order() if lane.has_waiting), None)
        if lane is None:
            return []

        def is_left_out(request: Request) -> bool:
            return self.party(request) in present

        overdue = next(lane.overdue(), None)
        if overdue is not None:
            return [] if is_left_out(overdue) else [overdue]
        return list(islice(lane.heads(is_left_out), LOOK_AHEAD))

    def upcoming(self) -> list[Request]:
        """Returns some of the requests that are likely to be served next."""
        return list(islice(chain.from_iterable(lane.upcoming() for lane in self._lanes_in_order()), LOOK_AHEAD))

    def take(self, request: Request) -> None:
        """Takes out a waiting request that is about to run."""
        self._lanes[self.urgency(request)].take(request)
        self._waiting.remove(request.request_id)

    def charge_input(self, request: Request, num_tokens: int) -> None:
        """Counts the computed prompt tokens of a request that was taken."""
        self._lanes[self.urgency(request)].charge(request, num_tokens * self._fairness.input_price)

    def charge_output(self, request: Request, num_tokens: int) -> None:
        self._lanes[self.urgency(request)].charge(request, num_tokens * self._fairness.output_price)

    def forget(self, request: Request) -> None:
        """Removes a finished request, wherever it stands. A request that was never pushed is allowed."""
        urgency = self.urgency(request)
        lane = self._lanes.get(urgency)
        if lane is None or not lane.knows(request):
            return
        if request.request_id in self._waiting:
            self.take(request)
        lane.forget(request)
        if lane.is_unused:
            del self._lanes[urgency]

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._waiting

    def check_integrity(self) -> None:
        """Raises RuntimeError when a request stands in no lane or in two, or an order is broken."""
        listed = [request.request_id for lane in self._lanes.values() for request in lane.waiting()]
        if len(listed) != len(self._waiting) or set(listed) != self._waiting:
            raise RuntimeError(f"{len(self._waiting)} requests wait, but the lanes list {len(listed)}")
        for lane in self._lanes.values():
            lane.check_integrity()
