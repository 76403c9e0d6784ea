"""AloneTurns: the steps of requests that are computed alone, because an engine may have crashed over one of them.

Such requests have every other step, each in its turn; all others share the steps between. A crash then names one
request, and the others go on meanwhile.
"""

from collections.abc import Sequence

from .request import Request


class AloneTurns:
    def __init__(self) -> None:
        self._was_alone = False  # the last step belonged to one request
        self._last = -1  # its arrival

    def next(self, running: Sequence[Request], has_others: bool) -> Request | None:
        """Returns the request that the next step belongs to, or None if the others share it. has_others: requests wait
        to be admitted."""
        suspects = [request for request in running if request.num_alone]
        has_others |= len(suspects) < len(running)
        self._was_alone = bool(suspects) and not (has_others and self._was_alone)
        if not self._was_alone:
            return None
        chosen = min(suspects, key=lambda request: (request.arrival <= self._last, request.arrival))
        self._last = chosen.arrival
        return chosen
