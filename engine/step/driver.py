"""Driver: decides which thread works on an engine: one at a time, and one alone computes the steps.

While only one thread calls, work runs where it is called. Once a second thread calls, an engine thread does the work of
all: it steps while any caller waits for more, and wakes each caller when there is what it waits for. Torch's threads
belong to the thread that began them, so steps that wandered between threads would make a team for each.

Owns the engine thread. Knows no request and no engine: work and steps are functions.
"""

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..errors import EngineUnavailable
from ..ipc.home_process import HomeProcess
from .engine_thread import ENDED, Call, EngineThread, fail_all

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Driver:
    def __init__(self, step: Callable[[], None], begin: Callable[[], None] = lambda: None) -> None:
        """step: computes one step of the engine. begin: called in the engine thread before anything else."""
        self._step, self._begin = step, begin
        self._home = HomeProcess("LLM")
        self._first = threading.get_ident()
        self._hand = threading.Lock()  # held by the first thread while it works, and by all who look for `_thread`
        self._thread: EngineThread | None = None
        self._has_company = False  # True once a second thread has called
        self._worker: int | None = None  # the thread that works now
        self._is_closed = False
        # Work that nobody waits for, done before any other. To append is all that a destructor may do: it may run in
        # any thread, and in the middle of a step.
        self.notes: deque[Callable[[], None]] = deque()

    def run(self, work: Callable[[], Answer]) -> Answer:
        """Does work between two steps and returns its result. Raises what the work raises, EngineUnavailable after
        `close`, WrongProcess."""
        return self.until(lambda: (work(),))[0]

    def until(self, poll: Callable[[], Answer | None]) -> Answer:
        """Has steps computed until `poll`, which is asked between steps, has an answer; returns it. Raises as `run`
        does, and what a step raises."""
        self._home.check()
        if self._worker == threading.get_ident():  # work that wants more work done
            return self._work_out(poll)
        if self._first == threading.get_ident() and not self._has_company:
            answer = self._work_alone(poll)
            if answer is not None:
                return answer
        return self._ask(poll)

    def close(self, end: Callable[[], None]) -> None:
        """Does the last work. All others who wait, and all who call later, get EngineUnavailable. Idempotent."""
        if self._is_closed:
            return

        def close() -> None:
            self._is_closed = True
            end()

        self.run(close)
        if self._thread is not None:
            with self._hand:  # nobody is about to hand it a call
                self._thread.end()

    def check_open(self) -> None:
        """Raises EngineUnavailable after `close`, WrongProcess in a child that was forked."""
        self._home.check()
        if self._is_closed:
            raise EngineUnavailable(ENDED)

    def _work_alone(self, poll: Callable[[], Answer | None]) -> Answer | None:
        """Works in the first thread. Returns None when another thread has called."""
        with self._hand:
            self.check_open()
            if self._thread is not None:
                return None
            self._worker = self._first
            try:
                self._do_notes()
                while (answer := poll()) is None and not self._has_company:
                    self._advance()
                return answer
            finally:
                self._worker = None

    def _work_out(self, poll: Callable[[], Answer | None]) -> Answer:
        while (answer := poll()) is None:
            self._advance()
        return answer

    def _ask(self, poll: Callable[[], Answer | None]) -> Answer:
        call = Call(poll, self._take_turn)
        self._has_company = True  # the first thread leaves the engine after its step
        with self._hand:
            self.check_open()
            if self._thread is None:
                self._thread = EngineThread(self._begin)
                self._thread.start()
                weakref.finalize(self, self._thread.end)
            self._thread.take(call)
        return call.wait()

    def _take_turn(self, calls: Sequence[Call[Any]]) -> list[Call[Any]]:
        """Works in the engine thread: asks each call for its answer, and computes a step if any has to wait for more.
        Returns those."""
        self._worker, waiting = threading.get_ident(), list(calls)
        try:
            self._do_notes()
            waiting = [call for call in calls if self._is_closed or not call.is_answered()]
            if self._is_closed:
                raise EngineUnavailable(ENDED)
            if waiting:
                self._advance()
            return waiting
        except BaseException as error:
            fail_all(waiting, error)
            return []
        finally:
            self._worker = None

    def _advance(self) -> None:
        self._do_notes()
        self._step()

    def _do_notes(self) -> None:
        while self.notes:
            try:
                self.notes.popleft()()
            except Exception:
                logger.exception("work that nobody waits for has failed")
