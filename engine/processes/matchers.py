"""Matchers: makes the matchers of requests with structured output, beside the steps, in a thread of its own.

Its grammars have been compiled by the grammar process before, so it is known that each can be, and about how long it
takes. The library compiles without the GIL, so that steps go on.
"""

import os
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor

from ..grammar.compiled import Matcher
from ..grammar.grammars import Grammars
from ..ipc.messages import AddRequest

NICENESS = 5  # of the thread


class Matchers:
    def __init__(self, grammars: Grammars, wake: Callable[[], None]) -> None:
        """wake: called from the thread when a matcher has been made."""
        self._grammars, self._wake = grammars, wake
        self._thread: ThreadPoolExecutor | None = None
        self._begun: dict[int, tuple[AddRequest, Future[Matcher]]] = {}  # by request id, in order

    def begin(self, message: AddRequest) -> None:
        """Begins to make the matcher of a request, after the tokens that were told of it already."""
        self._thread = self._thread or ThreadPoolExecutor(1, initializer=_go_to_background)
        future = self._thread.submit(self._make, message)
        self._begun[message.request_id] = (message, future)
        future.add_done_callback(lambda _: self._wake())

    def _make(self, message: AddRequest) -> Matcher:
        assert message.grammar is not None
        return self._grammars.matcher(message.grammar, message.told_token_ids)

    def forget(self, request_ids: Collection[int]) -> None:
        """Forgets requests that have ended. Unknown ids are fine."""
        for request_id in request_ids:
            _, future = self._begun.pop(request_id, (None, None))
            if future is not None:
                future.cancel()

    def take(self) -> list[tuple[AddRequest, Future[Matcher]]]:
        """Returns the requests whose matchers have been made, or could not be, in the order in which they came."""
        done = [entry for entry in self._begun.values() if entry[1].done()]
        for message, _ in done:
            del self._begun[message.request_id]
        return done

    def close(self) -> None:
        """Begins no other matcher, and wakes nobody any more: the process ends, and would wait for all of them."""
        self._wake = lambda: None
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)


def _go_to_background() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)  # 0 is the calling thread
