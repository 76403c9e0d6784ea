"""WaitingQueue: accepted requests in order of service. Owns the order, nothing else."""

import heapq

from .request import Request

ServiceOrder = tuple[int, int]  # sorts requests: what is smaller is served earlier


class WaitingQueue:
    def __init__(self, policy: str) -> None:
        """policy: "fcfs" (order of arrival) or "priority" (lower priority value first, then order of arrival)."""
        if policy not in ("fcfs", "priority"):
            raise ValueError(f"scheduling policy {policy!r} is neither 'fcfs' nor 'priority'")
        self._has_priorities = policy == "priority"
        self._heap: list[tuple[ServiceOrder, Request]] = []
        self._ids: set[int] = set()

    def order(self, request: Request) -> ServiceOrder:
        return (self.urgency(request), request.arrival)

    def urgency(self, request: Request) -> int:
        return request.priority if self._has_priorities else 0

    def push(self, request: Request) -> None:
        heapq.heappush(self._heap, (self.order(request), request))
        self._ids.add(request.request_id)

    def head(self) -> Request | None:
        while self._heap and self._heap[0][1].request_id not in self._ids:
            heapq.heappop(self._heap)  # removed while it waited
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Request:
        request = self.head()
        if request is None:
            raise IndexError("no request is waiting")
        heapq.heappop(self._heap)
        self._ids.remove(request.request_id)
        return request

    def remove(self, request: Request) -> None:
        """Forgets a request wherever it stands. One that does not wait is fine."""
        self._ids.discard(request.request_id)
        if len(self._heap) > 2 * len(self._ids) + 16:  # behind a head that waits, removed ones would pile up
            self._heap = [entry for entry in self._heap if entry[1].request_id in self._ids]
            heapq.heapify(self._heap)
