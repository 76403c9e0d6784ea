"""Matchers: makes the matchers of requests with structured output, beside the steps, in a thread of its own.

Its grammars have been compiled by the grammar process before, so it is known that each can be, and about how long it
takes. The library compiles without the GIL, so that steps go on. Tenants take turns. How much of one waits is bounded
where requests are accepted.
"""

import os
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue

from ..grammar.compiled import Matcher
from ..grammar.grammars import Grammars
from ..ipc.messages import AddRequest

NICENESS = 5  # of the thread


@dataclass(frozen=True, slots=True)
class _Begun:
    message: AddRequest
    matcher: "Future[Matcher]" = field(default_factory=Future)


class Matchers:
    def __init__(
        self, grammars: Grammars, wake: Callable[[], None], note: Callable[[int | None], None] = lambda _: None
    ) -> None:
        """wake: called from the thread when a matcher has been made. note: called from the thread with the id of the
        request that it is at, and None afterwards."""
        self._grammars, self._wake, self._note = grammars, wake, note
        self._thread: ThreadPoolExecutor | None = None
        self._begun: dict[int, _Begun] = {}  # by request id, in order
        self._turns = _Turns()

    def begin(self, message: AddRequest) -> None:
        """Begins to make the matcher of a request, after the tokens that were told of it already."""
        self._thread = self._thread or ThreadPoolExecutor(1, initializer=_go_to_background)
        begun = self._begun[message.request_id] = _Begun(message)
        begun.matcher.add_done_callback(lambda _: self._wake())
        self._turns.put(begun)
        self._thread.submit(self._make_next)

    def _make_next(self) -> None:
        begun = self._turns.take()
        if not begun.matcher.set_running_or_notify_cancel():
            return
        self._note(begun.message.request_id)
        try:
            made: Matcher | BaseException = self._make(begun.message)
        except BaseException as error:  # panics of libraries in Rust are no Exception
            made = error
        self._note(None)
        if isinstance(made, BaseException):
            begun.matcher.set_exception(made)
        else:
            begun.matcher.set_result(made)

    def _make(self, message: AddRequest) -> Matcher:
        assert message.grammar is not None
        return self._grammars.matcher(message.grammar, message.told_token_ids)

    def forget(self, request_ids: Collection[int]) -> None:
        """Forgets requests that have ended. Unknown ids are fine."""
        for request_id in request_ids:
            begun = self._begun.pop(request_id, None)
            if begun is not None:
                begun.matcher.cancel()

    def take(self) -> "list[tuple[AddRequest, Future[Matcher]]]":
        """Returns the requests whose matchers have been made, or could not be, in the order in which they came."""
        done = [begun for begun in self._begun.values() if begun.matcher.done()]
        for begun in done:
            del self._begun[begun.message.request_id]
        return [(begun.message, begun.matcher) for begun in done]

    def close(self) -> None:
        """Begins no other matcher, and wakes nobody any more: the process ends, and would wait for all of them."""
        self._wake = lambda: None
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)


class _Turns:
    """What waits for the thread. Tenants take turns, each in the order in which its own came."""

    def __init__(self) -> None:
        self._new: SimpleQueue[_Begun] = SimpleQueue()
        self._waiting: dict[str, deque[_Begun]] = {}  # by tenant; the first one is next. The thread's own

    def put(self, begun: _Begun) -> None:
        self._new.put(begun)

    def take(self) -> _Begun:
        """There is one. Called from the thread."""
        while not self._new.empty():
            begun = self._new.get()
            self._waiting.setdefault(begun.message.tenant, deque()).append(begun)
        tenant = next(iter(self._waiting))
        own = self._waiting.pop(tenant)
        begun = own.popleft()
        if own:  # the tenant goes to the end
            self._waiting[tenant] = own
        return begun


def _go_to_background() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)  # 0 is the calling thread
