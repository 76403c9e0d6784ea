"""TemplateClient: the front end's side of the template process. The other side is processes/template.py.

Has conversations rendered whose template comes with the request. Such a template holds up only others of its kind.
"""

import asyncio
from collections.abc import Mapping

from ..errors import EngineUnavailable, InvalidRequest, QueueFull
from ..text.chat import Chat
from .channel import ChannelClosed, Child, StartChild, start_child
from .messages import ChatRefused, FromTemplate, RenderChat

MAX_WAITING = 256  # conversations


class TemplateClient:
    """The process works on one conversation at a time. It starts with the first, and another starts after it has
    ended over one."""

    def __init__(self, start_child: StartChild = start_child) -> None:
        self._start_child = start_child
        self._child: Child[FromTemplate] | None = None
        self._turn = asyncio.Lock()
        self._num_orders = 0
        self._is_closed = False

    async def render(self, chat: Chat, special_tokens: Mapping[str, str]) -> str:
        """Returns the prompt of a conversation with its own template. Raises InvalidRequest, QueueFull,
        EngineUnavailable."""
        if self._num_orders >= MAX_WAITING:
            raise QueueFull(f"{self._num_orders} conversations wait for templates of their own, at most {MAX_WAITING}")
        self._num_orders += 1
        try:
            async with self._turn:
                answer = await self._exchange(RenderChat(chat, dict(special_tokens)))
        finally:
            self._num_orders -= 1
        if isinstance(answer, ChatRefused):
            raise InvalidRequest(answer.field, answer.reason)
        return answer.text

    async def _exchange(self, order: RenderChat) -> FromTemplate:
        try:
            child = await self._running_child()
            child.send(order)
            return await child.receive()
        except ChannelClosed:
            await self._stop()
            self._check_open()
            return ChatRefused("chat_template", "takes too long or too much memory")
        except BaseException:  # the caller has gone; this answer would be taken for that to the next order
            await self._stop()
            raise

    async def _running_child(self) -> Child[FromTemplate]:
        self._check_open()
        if self._child is None:
            self._child = await self._start_child("blora.engine.processes.template", FromTemplate)
            self._check_open()
        return self._child

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineUnavailable("the engine was shut down")

    async def close(self) -> None:
        """Ends the process for good: running and waiting calls raise EngineUnavailable."""
        self._is_closed = True
        await self._stop()

    async def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.stop(0)
