"""EngineThread: does the work that other threads call for, and has steps computed while any of them waits for more.

Owns the calls that wait. While there is none it knows no engine, so that an engine that nobody else knows is collected.
"""

import atexit
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from ..errors import EngineUnavailable

Answer = TypeVar("Answer")
Turn = Callable[[Sequence["Call[Any]"]], list["Call[Any]"]]
ENDED = "the LLM is closed"
# Seconds. Python hears a signal that comes just before a wait begins only when the wait returns.
LONGEST_DEAFNESS = 0.2


class Call(Generic[Answer]):
    """What a thread asks the engine thread for, until it has an answer or an error."""

    def __init__(self, poll: Callable[[], Answer | None], turn: Turn) -> None:
        """poll: asked in the engine thread, between steps, until it has an answer. turn: lets an engine work on the
        calls for it; returns those that go on waiting."""
        self.turn = turn
        self._poll = poll
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._is_over = threading.Event()
        self._is_given_up = False  # True once nobody waits any more

    def wait(self) -> Answer:
        try:
            while not self._is_over.wait(LONGEST_DEAFNESS):
                pass
        except BaseException:  # an interrupt
            self._is_given_up = True
            raise
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback holds this call
        assert self._answer is not None
        return self._answer

    def is_answered(self) -> bool:
        """Asks for the answer."""
        if self._is_given_up:
            return True
        try:
            self._answer = self._poll()
        except BaseException as error:
            self.fail(error)
        if self._answer is not None:
            self._is_over.set()
        return self._is_over.is_set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._is_over.set()


class EngineThread(threading.Thread):
    def __init__(self, begin: Callable[[], None]) -> None:
        """begin: called in the thread before anything else."""
        super().__init__(name="blora engine", daemon=True)
        self._begin = begin
        self._inbox: SimpleQueue[Call[Any] | None] = SimpleQueue()

    def take(self, call: Call[Any]) -> None:
        self._inbox.put(call)

    def end(self) -> None:
        """Ends the thread after its step; the calls that wait fail. A destructor may call this. Idempotent."""
        self._inbox.put(None)

    def run(self) -> None:
        self._begin()
        while self._serve():
            pass

    def _serve(self) -> bool:
        """Waits for a call, and works until none waits. Returns False at the end of the thread."""
        calls: list[Call[Any]] = []
        while True:
            arrived = [self._inbox.get()] if not calls else []
            arrived += [self._inbox.get() for _ in range(self._inbox.qsize())]
            calls += [call for call in arrived if call is not None]
            if None in arrived:
                fail_all(calls, EngineUnavailable(ENDED))
                return False
            calls = calls[0].turn(calls)
            if not calls:
                return True


def fail_all(calls: Sequence[Call[Any]], error: BaseException) -> None:
    for call in calls:
        call.fail(error)


@atexit.register
def _end_all() -> None:
    """The interpreter must not go while a thread computes a step."""
    for thread in threading.enumerate():
        if isinstance(thread, EngineThread):
            thread.end()
            thread.join()
