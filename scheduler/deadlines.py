"""Deadlines: unfinished requests that have a deadline of a kind, in the order in which these pass. Owns the order."""

from collections.abc import Callable, Iterable
from itertools import takewhile

from .ordered import Ordered
from .request import Request


class Deadlines:
    def __init__(self, deadline_of: Callable[[Request], float | None]) -> None:
        """deadline_of: a request's; None where it has none. It must not change while the request is listed."""
        self._deadline_of = deadline_of
        self._requests: Ordered[Request] = Ordered(lambda request: (deadline_of(request), request.arrival))

    def add(self, request: Request) -> None:
        if self._deadline_of(request) is not None:
            self._requests.add(request)

    def forget(self, request: Request) -> None:
        """Removes a request that ends, or that the deadline is met for."""
        if self._deadline_of(request) is not None:
            self._requests.remove(request)

    def passed(self, now: float) -> list[Request]:
        """Returns the requests whose deadline has passed. They stay listed until they are forgotten."""
        return list(takewhile(lambda request: (self._deadline_of(request) or 0.0) <= now, self._requests))

    def check_integrity(self, unfinished: Iterable[Request]) -> None:
        """Raises RuntimeError unless exactly the unfinished requests that have a deadline are listed, in order."""
        self._requests.check_integrity()
        wanted = {request.request_id for request in unfinished if self._deadline_of(request) is not None}
        if wanted != {request.request_id for request in self._requests}:
            raise RuntimeError("the requests listed by their deadlines are not the unfinished ones that have one")
