"""Deadline: the time of the event loop at which somebody stops to wait. Knows no request."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..errors import DeadlineExceeded

Result = TypeVar("Result")
PASSED = "the deadline passed before the answer was complete"


class Deadline:
    """The earliest of some times in seconds, as the event loop tells time; None never passes."""

    def __init__(self, *times: float | None) -> None:
        self._time = min((time for time in times if time is not None), default=None)

    async def bound(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Returns the result of work, which does not begin when the deadline has passed, and is cancelled when it
        passes. Raises DeadlineExceeded."""
        if self._time is not None and self._time <= asyncio.get_running_loop().time():
            work.close()
            raise DeadlineExceeded(PASSED)
        try:
            async with asyncio.timeout_at(self._time) as timeout:
                return await work
        except TimeoutError:
            if timeout.expired():
                raise DeadlineExceeded(PASSED) from None
            raise

    def alarm(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Calls back when the deadline passes, unless the returned function is called before."""
        if self._time is None:
            return lambda: None
        return asyncio.get_running_loop().call_at(self._time, callback).cancel
