"""Deadlines: the unfinished requests that have a deadline, in the order in which these pass. Owns the order."""

import math
from collections.abc import Iterable
from itertools import takewhile

from .ordered import Ordered
from .request import Request


def _deadline(request: Request) -> float:
    return math.inf if request.deadline is None else request.deadline


class Deadlines:
    def __init__(self) -> None:
        self._requests: Ordered[Request] = Ordered(lambda request: (_deadline(request), request.arrival))

    def add(self, request: Request) -> None:
        if request.deadline is not None:
            self._requests.add(request)

    def forget(self, request: Request) -> None:
        """Removes a request that ends."""
        if request.deadline is not None:
            self._requests.remove(request)

    def passed(self, now: float) -> list[Request]:
        """Returns the requests whose deadline has passed. They stay listed until they are forgotten."""
        return list(takewhile(lambda request: _deadline(request) <= now, self._requests))

    def check_integrity(self, unfinished: Iterable[Request]) -> None:
        """Raises RuntimeError unless exactly the unfinished requests that have a deadline are listed, in order."""
        self._requests.check_integrity()
        wanted = {request.request_id for request in unfinished if request.deadline is not None}
        if wanted != {request.request_id for request in self._requests}:
            raise RuntimeError("the requests listed by their deadlines are not the unfinished ones that have one")
