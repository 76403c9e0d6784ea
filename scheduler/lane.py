"""Lane: the waiting requests of one priority in fair order. Owns their flows; decides nothing about memory.

A *flow* is a queue, in order of arrival, of one tenant's requests for one list of adapters. Virtual token counters
divide the service among the tenants, and each tenant's share among its flows. So a lane of one flow is first come,
first served.

Only the first request of a flow can be *passed over*: another flow is served while the request waits. Once other flows
have received `max_passed_over` priced tokens in that time, the request is *overdue*: it stands before every flow, and
the next request of its flow starts a count of its own. So the k-th request of a flow is first in line at the latest
when other flows have received k times the bound.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from .fair_share import FairShares, Share
from .ordered import Ordered
from .request import Request


def _arrival(request: Request) -> int:
    return request.arrival


@dataclass(slots=True, eq=False)
class Flow(Share):
    tenant: "Tenant" = field(kw_only=True)
    requests: Ordered[Request] = field(default_factory=lambda: Ordered(_arrival))
    served: float = 0.0  # priced tokens that the flow has received
    head: Request | None = None  # the first of `requests`
    mark: float = 0.0  # service that other flows had received when the head began to be passed over
    due: float = 0.0  # until the lane's flows have received this much together, the head is not overdue


@dataclass(slots=True, eq=False)
class Tenant(Share):
    flows: FairShares[Hashable, Flow] = field(init=False)

    def __post_init__(self) -> None:
        self.flows = FairShares(lambda number: Flow(number, tenant=self))


def _due(flow: Flow) -> tuple[float, int, int]:
    return (flow.due, flow.tenant.number, flow.number)


class Lane:
    def __init__(self, max_passed_over: float) -> None:
        self._max_passed_over = max_passed_over
        self._tenants: FairShares[str, Tenant] = FairShares(Tenant)
        self._flows: dict[int, Flow] = {}  # request id -> flow, for requests that wait or run
        self._overdue: Ordered[Request] = Ordered(_arrival)
        self._dues: Ordered[Flow] = Ordered(_due)  # the waiting flows
        self._served = 0.0  # priced tokens that all flows have received

    def push(self, request: Request, tenant_name: str, flow_key: Hashable) -> None:
        """Adds a waiting request. flow_key: the flow of the named tenant that the request joins."""
        flow = self._flows.get(request.request_id)
        if flow is None:
            flow = self._flows[request.request_id] = self._tenants[tenant_name].flows[flow_key]
            flow.tenant.weight, flow.weight = request.weights
            flow.num_requests += 1
            flow.tenant.num_requests += 1
        if request.is_overdue:
            self._overdue.add(request)
        else:
            flow.requests.add(request)
            self._renew_head(flow)

    def take(self, request: Request) -> None:
        """Takes a waiting request out of its queue. The request counts for its flow until `forget`."""
        flow = self._flows[request.request_id]
        if request.is_overdue:
            self._overdue.remove(request)
        else:
            flow.requests.remove(request)
            self._renew_head(flow)

    def _renew_head(self, flow: Flow) -> None:
        """Stops the count of the old head and starts that of the new one. Called when the flow's requests change."""
        head = flow.requests.first if flow.requests else None
        if head is flow.head:
            return
        others = self._served - flow.served
        if flow.head is not None:
            flow.head.passed_over = others - flow.mark
            self._dues.remove(flow)
        flow.head = head
        if head is not None:
            flow.mark = others - head.passed_over
            self._renew_due(flow)
        self._renew_waiting(flow)

    def _renew_due(self, flow: Flow) -> None:
        flow.due = flow.mark + flow.served + self._max_passed_over
        self._dues.add(flow)

    def _renew_waiting(self, flow: Flow) -> None:
        tenant = flow.tenant
        if flow.is_waiting != (flow.head is not None):
            (tenant.flows.stop_waiting if flow.is_waiting else tenant.flows.start_waiting)(flow)
        has_waiting = any(True for _ in tenant.flows)
        if tenant.is_waiting != has_waiting:
            (self._tenants.stop_waiting if tenant.is_waiting else self._tenants.start_waiting)(tenant)

    def charge(self, request: Request, tokens: float) -> None:
        """Counts service for a request that was taken. tokens: priced tokens."""
        flow = self._flows[request.request_id]
        flow.served += tokens
        self._served += tokens
        flow.tenant.flows.charge(flow, tokens)
        self._tenants.charge(flow.tenant, tokens)
        self._find_overdue()

    def forget(self, request: Request) -> None:
        """Removes a finished request, taken before, from the counts of its flow and its tenant."""
        flow = self._flows.pop(request.request_id)
        flow.num_requests -= 1
        flow.tenant.num_requests -= 1

    def _find_overdue(self) -> None:
        """Makes the heads overdue that have been passed over up to the bound. A flow's own service postpones its due;
        the due is corrected only here, when it is reached."""
        while self._dues and self._dues.first.due <= self._served:
            flow = self._dues.first
            head = flow.head
            if head is None:
                raise RuntimeError("a flow without requests is due")
            if self._served - flow.served - flow.mark < self._max_passed_over:
                self._dues.remove(flow)
                self._renew_due(flow)
                continue
            flow.requests.remove(head)
            self._renew_head(flow)
            head.is_overdue = True
            self._overdue.add(head)

    def overdue(self) -> Iterator[Request]:
        """Yields the overdue requests, oldest first: none of them may be passed over any more."""
        return iter(self._overdue)

    def heads(self, is_left_out: Callable[[Request], bool] | None = None) -> Iterator[Request]:
        """Yields the first request of each flow; the flow that is served next comes first. is_left_out: tells from one
        request of a tenant whether to leave all of them out."""
        for tenant in self._tenants:
            heads = (flow.head for flow in tenant.flows if flow.head is not None)
            for first in islice(heads, 1):
                if is_left_out is None or not is_left_out(first):
                    yield from chain([first], heads)

    def upcoming(self) -> Iterator[Request]:
        """Yields requests that are likely to be served next. Of all flows but one, the head suffices: where there are
        several flows, the requests of a flow use the same adapters."""
        yield from self._overdue
        yield from self.heads()
        for flow in islice(self._dues, 1):
            yield from islice(flow.requests, 1, None)

    def knows(self, request: Request) -> bool:
        """Returns whether the request waits here, or was taken and is not forgotten."""
        return request.request_id in self._flows

    @property
    def has_waiting(self) -> bool:
        return bool(self._overdue) or bool(self._dues)

    @property
    def is_unused(self) -> bool:
        return not self._flows

    def waiting(self) -> Iterator[Request]:
        """Yields every waiting request, in no particular order."""
        yield from self._overdue
        for flow in self._dues:
            yield from flow.requests

    def check_integrity(self) -> None:
        """Raises RuntimeError when an order or a count is broken."""
        self._tenants.check_integrity()
        self._dues.check_integrity()
        self._overdue.check_integrity()
        flows = set(self._flows.values())
        for flow in flows:
            flow.requests.check_integrity()
            flow.tenant.flows.check_integrity()
            num_requests = sum(other is flow for other in self._flows.values())
            if flow.num_requests != num_requests or flow.is_waiting != (flow.head is not None):
                raise RuntimeError(f"a flow of {num_requests} requests counts {flow.num_requests}, or has a wrong head")
            if flow.head is not (flow.requests.first if flow.requests else None):
                raise RuntimeError("the head of a flow is not its first request")
        if {flow for flow in flows if flow.is_waiting} != set(self._dues):
            raise RuntimeError("the waiting flows are not those that are listed by their due")
