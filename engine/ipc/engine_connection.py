"""EngineConnection: how the front end talks to the engine process. Owns the current child and the open calls.

Starts and stops no process: EngineSupervisor attaches a child and detaches it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import EngineFault, EngineUnavailable
from .channel import ChannelClosed, Child
from .messages import CallFailed, DoneReply, FromEngine, StateReply, Updates

logger = logging.getLogger(__name__)
ENDED = "the engine ended unexpectedly"


class EngineConnection:
    """The connection to the current child. With no child, or a dead one, sending raises EngineUnavailable."""

    def __init__(self) -> None:
        self._child: Child[FromEngine] | None = None
        self._why_closed = "the engine is not started: await start() first"
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._num_calls = 0

    @property
    def is_open(self) -> bool:
        return self._child is not None

    @property
    def child(self) -> Child[FromEngine]:
        if self._child is None:
            raise self.unavailable()
        return self._child

    def unavailable(self) -> EngineUnavailable:
        """Returns the error to raise while there is no engine."""
        return EngineUnavailable(self._why_closed)

    def check_open(self) -> None:
        if self._child is None:
            raise self.unavailable()

    def attach(self, child: Child[FromEngine]) -> None:
        self._child = child

    def detach(self, why: str, *, why_calls_fail: str) -> Child[FromEngine] | None:
        """Returns the child, which the caller stops, and leaves the connection without one. why: the message of
        EngineUnavailable from now on. why_calls_fail: the message for open calls."""
        child, self._child = self._child, None
        self._why_closed = why
        for call in self._calls.values():
            if not call.done():
                call.set_exception(EngineUnavailable(why_calls_fail))
        self._calls.clear()
        return child

    def send(self, message: Any) -> None:
        try:
            self.child.send(message)
        except ChannelClosed:
            raise EngineUnavailable(ENDED) from None

    async def call_with(self, message: Callable[[int], Any], descriptor: int) -> Any:
        """Does what `call` does with a message that announces a descriptor."""
        call_id = self.next_call_id()
        answer = self.expect(call_id)
        try:
            await self.child.send_with(message(call_id), descriptor)
        except ChannelClosed:
            raise EngineUnavailable(ENDED) from None
        return await answer

    def call(self, message: Callable[[int], Any]) -> Awaitable[Any]:
        """Sends the message made from a new call id; returns an awaitable of the engine's answer."""
        call_id = self.next_call_id()
        self.send(message(call_id))
        return self.expect(call_id)

    def expect(self, call_id: int) -> "asyncio.Future[Any]":
        """Returns an awaitable of the answer to the message that was sent with this id."""
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
        child = self.child
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
