"""EngineConnection: how the front end talks to the engine process. Owns the current child and the open calls.

Starts and stops no process: EngineSupervisor attaches a child, and takes it back when it has ended. Until another one
is attached, whoever needs an engine waits; a message that needs no answer is dropped, because the next engine is told
everything anew.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..errors import EngineFault, EngineUnavailable
from .channel import ChannelClosed, Child
from .messages import CallFailed, DoneReply, FromEngine, StateReply, Updates

logger = logging.getLogger(__name__)
RESTARTING = "the engine is being restarted"
MAX_ENGINES = 4  # that a call is put to


class EngineConnection:
    def __init__(self) -> None:
        self._child: Child[FromEngine] | None = None
        self._why_closed: str | None = "the engine is not started: await start() first"
        self._changed = asyncio.Event()  # set when one of the two changes, by `_become`, which replaces the event
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._num_calls = 0

    # Engines come and go.

    def attach(self, child: Child[FromEngine]) -> None:
        self._become(child, None)

    def lose(self) -> Child[FromEngine] | None:
        """The engine has ended, and another one is on its way. Returns the child, which the caller stops."""
        return self._become(None, None)

    def close(self, why: str) -> Child[FromEngine] | None:
        """Until an engine is attached, whoever needs one is refused. Returns as `lose` does."""
        return self._become(None, why)

    def _become(self, child: Child[FromEngine] | None, why_closed: str | None) -> Child[FromEngine] | None:
        before, self._child, self._why_closed = self._child, child, why_closed
        if child is None:
            self._break_off_calls()
        self._changed.set()
        self._changed = asyncio.Event()
        return before

    def _break_off_calls(self) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.done():
                call.set_exception(ChannelClosed())

    @property
    def is_open(self) -> bool:
        return self._child is not None

    def unavailable(self) -> EngineUnavailable:
        """Returns the error to raise while there is no engine."""
        return EngineUnavailable(self._why_closed or RESTARTING)

    def check_open(self) -> None:
        """Raises EngineUnavailable while there is no engine."""
        if self._child is None:
            raise self.unavailable()

    def check_expected(self) -> None:
        """Raises EngineUnavailable unless there is an engine, or another one is on its way."""
        if self._why_closed is not None:
            raise self.unavailable()

    async def _wait_for_engine(self, after: Child[FromEngine] | None = None) -> Child[FromEngine]:
        """Returns the engine as soon as there is one, and it is not `after`. Raises EngineUnavailable."""
        while self._child is None or self._child is after:
            self.check_expected()
            await self._changed.wait()
        return self._child

    # Messages.

    def send(self, message: Any) -> None:
        """Sends a message, or drops it where there is no engine, or one that has just ended."""
        if self._child is not None:
            with suppress(ChannelClosed):
                self._child.send(message)

    async def call(self, message: Callable[[int], Any], descriptor: int | None = None) -> Any:
        """Sends the message made from a new call id, as soon as there is an engine, and returns the answer. If the
        engine ends without one, the next engine is asked, by a message made for it; after MAX_ENGINES the call itself
        may be what ends them. descriptor: what the message announces. Raises EngineFault, EngineUnavailable."""
        child: Child[FromEngine] | None = None
        for _ in range(MAX_ENGINES):
            child = await self._wait_for_engine(after=child)
            call_id = self.next_call_id()
            with suppress(ChannelClosed):
                if descriptor is None:
                    child.send(message(call_id))
                else:
                    await child.send_with(message(call_id), descriptor)
                return await self.expect(call_id)
        raise EngineUnavailable(f"{MAX_ENGINES} engines in a row ended without an answer to this call")

    def expect(self, call_id: int) -> "asyncio.Future[Any]":
        """Returns an awaitable of the answer to the message that was sent with this id. Raises ChannelClosed when the
        engine ends without one."""
        call = self._calls[call_id] = asyncio.get_running_loop().create_future()
        return call

    def next_call_id(self) -> int:
        """Returns an id for a message that `call` does not send: its answer is ignored, or the child is not attached
        yet and `expect` waits for the answer."""
        self._num_calls += 1
        return self._num_calls

    async def receive(self) -> Updates:
        """Returns the next updates of requests and adapters; gives answers to the calls that wait for them. Raises
        ChannelClosed."""
        child = self._child
        if child is None:
            raise ChannelClosed
        while True:
            match await child.receive():
                case Updates() as updates:
                    return updates
                case DoneReply() | StateReply() | CallFailed() as reply:
                    self._end_call(reply)
                case message:
                    logger.error("unexpected message from the engine: %s", type(message).__name__)

    def _end_call(self, reply: DoneReply | StateReply | CallFailed) -> None:
        call = self._calls.pop(reply.call_id, None)
        if call is None or call.done():
            return
        if isinstance(reply, CallFailed):
            call.set_exception(EngineFault(f"the engine met an error of its own over this call ({reply.error})"))
        else:
            call.set_result(reply)
