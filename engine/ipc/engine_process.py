"""EngineProcess: the child process of an engine, and the logbook that outlives it.

Starts one and ends it; knows neither requests nor adapters.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from ..config import EngineConfig
from ..errors import EngineStartError
from .channel import ChannelClosed, Child, StartChild
from .death import Death, death_of
from .logbook import Logbook, create_logbook
from .messages import FromEngine, Ready, Start, StartFailed

MODULE = "blora.engine.processes.engine"


@dataclass(frozen=True, slots=True)
class EngineProcess:
    child: Child[FromEngine]
    logbook: Logbook
    ready: Ready

    async def bury(self, grace: float) -> Death:
        """Follows when the process has closed its channel. grace: seconds for it to end by itself, before it is
        killed."""
        has_ended = await self.child.stop(grace)
        entry = self.logbook.entry()
        if not has_ended:
            return Death("closed its channel, and had to be killed", True, entry)
        return death_of(self.child.process.returncode or 0, entry)


async def start_engine_process(start_child: StartChild, config: EngineConfig, model: Path) -> EngineProcess:
    """model: a folder or .gguf file. To cancel it ends the process. Raises EngineStartError."""
    child: Child[FromEngine] = await start_child(MODULE, FromEngine)
    try:
        logbook, descriptor = create_logbook(config.max_num_seqs)
        try:
            await child.send_with(Start(config, str(model)), descriptor)
        finally:
            os.close(descriptor)
        answer = await child.receive()
    except ChannelClosed:
        answer = StartFailed("the engine process ended while it started")
    except BaseException:
        await child.stop(0)
        raise
    if isinstance(answer, Ready):
        return EngineProcess(child, logbook, answer)
    await child.stop(0)
    raise EngineStartError(answer.reason if isinstance(answer, StartFailed) else "the engine did not answer")
