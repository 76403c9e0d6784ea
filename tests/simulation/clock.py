"""VirtualLoop: an event loop whose clock jumps to the next timer when nothing is ready, so that no test waits.

Nothing outside may wake it: no socket, process or thread. When nothing is ready and no timer is set, nothing can happen
any more, and it raises Standstill: what still waits would wait for ever.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")
START = 1000.0  # the clock's first time in seconds: 0 means "not yet" in places
MOST_ROUNDS = 100_000  # of the loop at one time; more mean that tasks wake each other for ever


class Standstill(Exception):
    """What still waits would wait for ever."""


class Clock:
    def __init__(self) -> None:
        self.now = START


class _Jumps(selectors.SelectSelector):
    """A selector that never waits: the clock jumps to the end of each wait."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._num_rounds = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Standstill("nothing is ready, and no timer is set")
        self._num_rounds = 0 if timeout > 0 else self._num_rounds + 1
        if self._num_rounds > MOST_ROUNDS:
            raise Standstill(f"{MOST_ROUNDS} rounds of the loop passed at one time")
        self._clock.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = Clock()
        super().__init__(_Jumps(self._clock))

    def time(self) -> float:
        return self._clock.now


def run(main: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Runs a coroutine to its end in a loop of its own. Raises what it raises, Standstill."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
