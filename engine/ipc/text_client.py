"""TextClient: the front end's side of a text process. The other side is processes/text.py.

Has done what would hold up all streams in the front end: long texts, and the templates of requests and adapters.
"""

import asyncio
from pathlib import Path

from ..errors import InvalidRequest
from ..facts import Facts
from ..text.text_work import TextOrder, TextTokens
from .asked_child import AskedChild
from .channel import StartChild, start_child
from .messages import FromText, ReadText, StartText, TextRefused
from .tenant_turns import TenantTurns

MAX_WAITING = 64 << 20  # characters: a few hundred of the longest prompts, or a day's work in hostile templates
# On a busy core a long text gets a third of the time, and a stranger's template a thirtieth.
OWN_NICENESS, STRANGE_NICENESS = 5, 15
WORK_TIMEOUT = 60.0  # seconds of one work; the process ends itself after 20 s of work


class TextClient:
    """The process does one work at a time. It starts with the first, and another starts after it has ended over one."""

    def __init__(self, model: Path, facts: Facts, niceness: int, start_child: StartChild = start_child) -> None:
        """model: folder or .gguf file."""
        first = StartText(str(model), facts, niceness)
        self._child: AskedChild[FromText] = AskedChild(
            "blora.engine.processes.text", FromText, start_child, first, WORK_TIMEOUT
        )
        self._turns = TenantTurns("texts", MAX_WAITING)

    async def read(self, order: TextOrder, tenant: str) -> TextTokens:
        """Raises InvalidRequest, QueueFull, EngineUnavailable."""
        async with self._turns.turn(tenant, order.work.weight):
            answer = await self._child.ask(ReadText(order))
        if answer is None:
            raise InvalidRequest(order.work.field, "takes too long or too much memory")
        if isinstance(answer, TextRefused):
            raise InvalidRequest(answer.field, answer.reason)
        return answer.tokens

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
