"""EngineSupervisor: starts the engine process, reads its messages, and starts another when it dies.

Owns the process and attaches it to the connection. Its callbacks decide what the death of an engine means to requests
and adapters.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

from ..config import EngineConfig
from ..errors import EngineStartError
from .channel import ChannelClosed, Child, StartChild, start_child
from .engine_connection import EngineConnection
from .messages import FromEngine, Ready, Start, StartFailed, Updates

logger = logging.getLogger(__name__)

GRACE = 5.0  # seconds for a child to end by itself
RESTART_DELAYS = (0.0, 0.5, 2.0, 10.0)  # seconds before each attempt; the last one repeats
# Seconds without an engine after which requests wait for none any more: an engine that is well starts in a few seconds,
# one of a large model within PATIENCE_STARTS times its first start.
MIN_PATIENCE = 60.0
PATIENCE_STARTS = 3
MAX_FRUITLESS = 10  # engines in a row that computed nothing before they ended: their requests are given to no other one


class EngineSupervisor:
    def __init__(
        self,
        connection: EngineConnection,
        config: EngineConfig,
        on_running: Callable[[], None],
        on_updates: Callable[[Updates], Awaitable[None]],
        on_lost: Callable[[], None],
        on_given_up: Callable[[], None],
        equip: Callable[[Child[FromEngine]], Awaitable[None]],
        start_child: StartChild = start_child,
    ) -> None:
        """on_running: called after an engine was attached to the connection. on_lost: called after it was detached.
        on_given_up: called when requests should no longer wait for another one. equip: gives a new engine the state of
        the one before, before it is attached."""
        self._connection = connection
        self._config = config
        self._on_running, self._on_updates, self._equip = on_running, on_updates, equip
        self._on_lost, self._on_given_up = on_lost, on_given_up
        self._start_process = start_child
        self._task: asyncio.Task[None] | None = None

    async def start(self, model: Path) -> Ready:
        """Starts the first engine. model: a folder or .gguf file. Raises EngineStartError, ChannelClosed."""
        loop = asyncio.get_running_loop()
        self._model, began = model, loop.time()
        child, ready = await self._start_child(self._config)
        self._connection.attach(child)
        self._patience = max(MIN_PATIENCE, PATIENCE_STARTS * (loop.time() - began))
        # The next engine gets the same size, because requests are checked against this one's.
        self._config = replace(self._config, memory=ready.facts.num_pages * ready.page_bytes)
        return ready

    def supervise(self) -> None:
        """Calls `on_updates`, and replaces an engine that dies, until `stop`."""
        self._task = asyncio.create_task(self._supervise())
        self._task.add_done_callback(_log_failure)

    async def stop(self, grace: float | None = None) -> None:
        """Ends the process for good. Idempotent. grace: seconds for it to end by itself, instead of GRACE."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        child = self._connection.close("the engine was shut down")
        if child is not None:
            await child.stop(GRACE if grace is None else grace)

    async def _start_child(self, config: EngineConfig) -> tuple[Child[FromEngine], Ready]:
        child: Child[FromEngine] = await self._start_process("blora.engine.processes.engine", FromEngine)
        try:
            child.send(Start(config, str(self._model)))
            answer = await child.receive()
        except ChannelClosed:
            answer = StartFailed("the engine process ended while it started")
        except BaseException:
            await child.stop(0)
            raise
        if not isinstance(answer, Ready):
            await child.stop(0)
            raise EngineStartError(answer.reason if isinstance(answer, StartFailed) else "the engine did not answer")
        return child, answer

    async def _supervise(self) -> None:
        num_fruitless = 0  # engines in a row that computed nothing
        while True:
            self._on_running()
            num_fruitless = 0 if await self._read() else num_fruitless + 1
            logger.error("the engine process ended unexpectedly; restarting it")
            await self._bury()
            if num_fruitless >= MAX_FRUITLESS:
                logger.error("%d engines in a row ended before they computed anything", num_fruitless)
                self._on_given_up()
            await self._restart()

    async def _read(self) -> bool:
        """Reads until the engine ends. Returns whether it has computed anything."""
        has_computed = False
        while True:
            try:
                updates = await self._connection.receive()
            except ChannelClosed:
                return has_computed
            await self._on_updates(updates)
            has_computed |= bool(updates.rows)

    async def _bury(self) -> None:
        child = self._connection.lose()
        self._on_lost()
        if child is not None:
            await child.stop(0)

    async def _restart(self) -> None:
        giving_up = asyncio.get_running_loop().call_later(self._patience, self._give_up)
        try:
            await self._try_to_restart()
        finally:
            giving_up.cancel()

    async def _try_to_restart(self) -> None:
        for attempt in count():
            await asyncio.sleep(RESTART_DELAYS[min(attempt, len(RESTART_DELAYS) - 1)])
            try:
                self._connection.attach(await self._start_another())
                return
            except (EngineStartError, ChannelClosed, OSError) as error:
                logger.error("the engine cannot be restarted: %s", error or type(error).__name__)

    def _give_up(self) -> None:
        """Goes on to try, but nobody waits any more."""
        self._connection.close(f"the engine ended, and none could be started for {self._patience:.0f} s")
        self._on_given_up()

    async def _start_another(self) -> Child[FromEngine]:
        child, _ = await self._start_child(self._config)
        try:
            await self._equip(child)
        except BaseException:
            await child.stop(0)
            raise
        return child


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.critical("the engine is no longer supervised: it will not be restarted", exc_info=task.exception())
