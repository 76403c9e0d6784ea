"""GrammarClient: the front end's side of the grammar process. The other side is processes/grammar.py.

Keeps what it has been told, by content: the same schema comes with request after request.
"""

from pathlib import Path

from ..errors import InvalidRequest
from ..grammar.grammars import GrammarOrder
from ..grammar.shelf import Shelf
from ..grammar.source import GrammarSource, refused
from .asked_child import AskedChild
from .channel import StartChild, start_child
from .messages import CheckGrammar, FromGrammar, GrammarRefused, StartGrammars
from .tenant_turns import TenantTurns

MAX_WAITING = 4 << 20  # characters of grammars
MAX_KEPT = 16 << 20  # characters of grammars whose answers are kept
NICENESS = 10  # on a busy core, a tenth of the time
TIMEOUT = 30.0  # seconds of one grammar; the process ends itself after 2 s of work
WEIGHT = 4096  # of a grammar, besides its characters: all streams wait while the oldest are found among 4096
TOO_MUCH = "takes too long, or too much memory, to compile"


class GrammarClient:
    def __init__(self, model: Path, vocab_size: int, start_child: StartChild = start_child) -> None:
        """model: folder or .gguf file. vocab_size: width of the model's logits."""
        first = StartGrammars(str(model), vocab_size, NICENESS)
        self._child: AskedChild[FromGrammar] = AskedChild(
            "blora.engine.processes.grammar", FromGrammar, start_child, first, TIMEOUT
        )
        self._turns = TenantTurns("grammars", MAX_WAITING)
        self._told: Shelf[FromGrammar] = Shelf(MAX_KEPT)

    async def check(self, source: GrammarSource, spelled: tuple[tuple[int, str], ...], tenant: str) -> GrammarOrder:
        """spelled: as for GrammarOrder. Raises InvalidRequest, QueueFull, EngineUnavailable."""
        told = self._told.get(source)
        if told is None:
            async with self._turns.turn(tenant, source.size):
                told = self._told.get(source) or await self._ask(source)
        if isinstance(told, GrammarRefused):
            raise InvalidRequest(told.field, told.reason)
        return GrammarOrder(told.text, told.num_bytes, spelled)

    async def _ask(self, source: GrammarSource) -> FromGrammar:
        answer = await self._child.ask(CheckGrammar(source))
        if answer is None:  # not kept: it may have been the machine's fault
            error = refused(source.kind.value, TOO_MUCH)
            return GrammarRefused(error.field, error.reason)
        num_told = len(answer.reason) if isinstance(answer, GrammarRefused) else len(answer.text)
        self._told.put(source, answer, source.size + num_told + WEIGHT)
        return answer

    async def close(self) -> None:
        """Ends the process for good: running and waiting calls raise EngineUnavailable."""
        await self._child.close()
