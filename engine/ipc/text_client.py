"""TextClient: the front end's side of a text process. The other side is processes/text.py.

Has done what would hold up all streams in the front end: long texts, and the templates of requests and adapters.
"""

import asyncio
from pathlib import Path

from ..errors import InvalidRequest
from ..facts import Facts
from ..text.text_work import TextOrder, TextTokens
from .channel import ChannelClosed, StartChild, start_child
from .kept_child import KeptChild
from .messages import FromText, ReadText, StartText, TextRefused
from .patience import in_time
from .tenant_turns import TenantTurns

MAX_WAITING = 64 << 20  # characters: a few hundred of the longest prompts, or a day's work in hostile templates
# On a busy core a long text gets a third of the time, and a stranger's template a thirtieth.
OWN_NICENESS, STRANGE_NICENESS = 5, 15
WORK_TIMEOUT = 60.0  # seconds of one work; the process ends itself after 20 s of work
LEAVE_TIMEOUT = 1.0  # seconds that work goes on when its caller has gone: another process would take as long to start


class TextClient:
    """The process does one work at a time. It starts with the first, and another starts after it has ended over one."""

    def __init__(self, model: Path, facts: Facts, niceness: int, start_child: StartChild = start_child) -> None:
        """model: folder or .gguf file."""
        first = StartText(str(model), facts, niceness)
        self._child: KeptChild[FromText] = KeptChild("blora.engine.processes.text", FromText, start_child, first)
        self._turns = TenantTurns("texts", MAX_WAITING)

    async def read(self, order: TextOrder, tenant: str) -> TextTokens:
        """Raises InvalidRequest, QueueFull, EngineUnavailable."""
        async with self._turns.turn(tenant, order.work.weight):
            answer = await self._answer(order)
        if isinstance(answer, TextRefused):
            raise InvalidRequest(answer.field, answer.reason)
        return answer.tokens

    async def _answer(self, order: TextOrder) -> FromText:
        answer = asyncio.create_task(self._exchange(order))
        try:
            told: FromText = await in_time(answer, WORK_TIMEOUT, self._child.seconds_without_core)
            return told
        except (ChannelClosed, TimeoutError):
            await self._give_up(answer)
            self._child.check_open()
            return TextRefused(order.work.field, "takes too long or too much memory")
        except BaseException:  # the caller has gone, for one
            try:
                await asyncio.wait({answer}, timeout=LEAVE_TIMEOUT)
            finally:  # it may be cancelled again, and the next caller must not meet this one's answer
                await self._give_up(answer)
            raise

    async def _give_up(self, answer: "asyncio.Task[FromText]") -> None:
        """Ends a process that has not answered: its answer would be taken for that to the next order."""
        if answer.cancel() or answer.exception() is not None:
            await self._child.stop()

    async def _exchange(self, order: TextOrder) -> FromText:
        child = await self._child.running()
        child.send(ReadText(order))
        return await child.receive()

    async def close(self) -> None:
        """Ends the process for good: running and waiting calls raise EngineUnavailable."""
        await self._child.close()


class TextClients:
    """Two processes: one for long texts, and one for the templates of strangers, so that these hold up only each
    other."""

    def __init__(self, model: Path, facts: Facts, start_child: StartChild = start_child) -> None:
        self._own = TextClient(model, facts, OWN_NICENESS, start_child)
        self._strange = TextClient(model, facts, STRANGE_NICENESS, start_child)

    async def read(self, order: TextOrder, tenant: str) -> TextTokens:
        """Does what `TextClient.read` does, in one of the two."""
        return await (self._strange if order.runs_strange_template else self._own).read(order, tenant)

    async def close(self) -> None:
        await asyncio.gather(self._own.close(), self._strange.close())
