"""AskedChild: a child process that answers one order at a time. One that does not answer in time is ended.

For the clients of children that run what strangers wrote. Knows no message.
"""

import asyncio
from typing import Any, Generic, TypeVar

from .channel import ChannelClosed, StartChild
from .kept_child import KeptChild
from .patience import in_time

Incoming = TypeVar("Incoming")
LEAVE_TIMEOUT = 1.0  # seconds that work goes on when its caller has gone: another process would take as long to start


class AskedChild(Generic[Incoming]):
    def __init__(self, module: str, incoming: Any, start_child: StartChild, first: Any, timeout: float) -> None:
        """As KeptChild. timeout: seconds of one work, those without a core not counted."""
        self._child: KeptChild[Incoming] = KeptChild(module, incoming, start_child, first)
        self._timeout = timeout

    async def ask(self, order: Any) -> Incoming | None:
        """Returns the answer; None if the process has ended over the order, or takes too long. One caller at a time.
        Raises EngineUnavailable."""
        answer = asyncio.create_task(self._exchange(order))
        try:
            told: Incoming = await in_time(answer, self._timeout, self._child.seconds_without_core)
            return told
        except (ChannelClosed, TimeoutError):
            await self._give_up(answer)
            self._child.check_open()
            return None
        except BaseException:  # the caller has gone, for one
            try:
                await asyncio.wait({answer}, timeout=LEAVE_TIMEOUT)
            finally:  # it may be cancelled again, and the next caller must not meet this one's answer
                await self._give_up(answer)
            raise

    async def _give_up(self, answer: "asyncio.Task[Incoming]") -> None:
        """Ends a process that has not answered: its answer would be taken for that to the next order."""
        if answer.cancel() or answer.exception() is not None:
            await self._child.stop()

    async def _exchange(self, order: Any) -> Incoming:
        child = await self._child.running()
        child.send(order)
        return await child.receive()

    async def close(self) -> None:
        """Ends the process for good: running and waiting calls raise EngineUnavailable."""
        await self._child.close()
