"""EngineSupervisor: starts the engine process, reads its messages, and starts another when it dies.

Owns the process and attaches it to the connection. Its callbacks decide what the death of an engine means to requests
and adapters.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import EngineConfig
from ..errors import EngineStartError
from ..events import tell
from .channel import ChannelClosed, Child, StartChild, start_child
from .death import Death
from .engine_connection import EngineConnection
from .engine_process import EngineProcess, start_engine_process
from .engine_watch import EngineStands, EngineWatch
from .messages import FromEngine, Ready, Updates
from .restart_waits import RestartWaits

logger = logging.getLogger(__name__)

GRACE = 5.0  # seconds for a child to end by itself
MAX_START = 3600.0  # seconds for the first start: a large model may come over a network
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
        on_death: Callable[[Death], bool],
        on_given_up: Callable[[], None],
        equip: Callable[[Child[FromEngine]], Coroutine[Any, Any, None]],
        start_child: StartChild = start_child,
    ) -> None:
        """on_running: called after an engine was attached to the connection. on_lost: called after it was detached.
        on_death: called when an engine has ended, which may be one that was never attached; returns whether the cause
        will be kept from the next one. on_given_up: called when requests should no longer wait for another one. equip:
        gives a new engine the state of the one before, before it is attached."""
        self._connection = connection
        self._config = config
        self._on_running, self._on_updates, self._equip = on_running, on_updates, equip
        self._on_lost, self._on_death, self._on_given_up = on_lost, on_death, on_given_up
        self._start_process = start_child
        self._task: asyncio.Task[None] | None = None
        self._waits = RestartWaits()

    async def start(self, model: Path) -> Ready:
        """Starts the first engine. model: a folder or .gguf file. Raises EngineStartError, ChannelClosed."""
        loop = asyncio.get_running_loop()
        self._model, began = model, loop.time()
        self._engine = await self._start_within(MAX_START)
        self._connection.attach(self._engine.child)
        self._start = loop.time() - began  # seconds that the engine took to start
        self._patience = max(MIN_PATIENCE, PATIENCE_STARTS * self._start)
        # The next engine gets the same size, because requests are checked against this one's.
        ready = self._engine.ready
        self._config = replace(self._config, memory=ready.facts.num_pages * ready.page_bytes)
        return ready

    def supervise(self) -> None:
        """Calls `on_updates`, and replaces an engine that dies, until `stop`."""
        self._task = asyncio.create_task(self._supervise())

    async def stop(self, grace: float | None = None) -> None:
        """Ends the process for good. Idempotent. grace: seconds for it to end by itself, instead of GRACE."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        child = self._connection.close("the engine was shut down")
        if child is not None:
            await child.stop(GRACE if grace is None else grace)

    async def _start_within(self, seconds: float) -> EngineProcess:
        """Raises EngineStartError."""
        try:
            starting = start_engine_process(self._start_process, self._config, self._model)
            return await asyncio.wait_for(starting, seconds)
        except TimeoutError:
            raise EngineStartError(f"the engine has not started within {seconds:.0f} s") from None

    async def _supervise(self) -> None:
        try:
            await self._replace_engines()
        except Exception:
            logger.critical("the engine is no longer supervised: restart the server", exc_info=True)
            await self._end_for_good()

    async def _end_for_good(self) -> None:
        """Nobody may wait for an engine that nobody would start."""
        child = self._connection.close("the engine was ended by an error in the front end, which its log shows")
        self._on_lost()
        self._on_given_up()
        if child is not None:
            await child.stop(0)

    async def _replace_engines(self) -> None:
        loop = asyncio.get_running_loop()
        num_fruitless = 0  # engines in a row that computed nothing
        while True:
            began = loop.time()
            self._on_running()
            self._has_computed = False
            death = await self._live()
            num_fruitless = 0 if self._has_computed else num_fruitless + 1
            if num_fruitless >= MAX_FRUITLESS:
                logger.error("%d engines in a row ended before they computed anything", num_fruitless)
                self._on_given_up()
            life, has_computed = loop.time() - began, self._has_computed
            await self._restart(self._waits.after(death, start=self._start, life=life, has_computed=has_computed))

    async def _live(self) -> Death:
        """Reads the engine's messages until it ends or stands."""
        engine, standing = self._engine, None
        try:
            await self._watch(engine).during(self._read())
        except EngineStands as error:
            standing = error.death
        self._connection.lose()
        self._on_lost()
        return await self._bury(engine, standing)

    def _watch(self, engine: EngineProcess) -> EngineWatch:
        return EngineWatch(engine, self._config.stall_seconds)

    async def _read(self) -> None:
        while True:
            try:
                updates = await self._connection.receive()
            except ChannelClosed:
                return
            await self._on_updates(updates)
            self._has_computed |= bool(updates.rows)

    async def _bury(self, engine: EngineProcess, standing: Death | None) -> Death:
        """Ends an engine that stands, or that has closed its channel, and tells of its death."""
        if standing is None:
            death = await engine.bury(GRACE)
        else:
            await engine.child.stop(0)
            death = standing
        text = f"the engine process {death.how} while it was {death.entry}; another one is started"
        tell(logger, "engine_died", text, logging.ERROR, how=death.how, is_crash=death.is_crash)
        if self._on_death(death):
            self._waits.begin_anew()
        return death

    async def _restart(self, wait: float) -> None:
        giving_up = asyncio.get_running_loop().call_later(self._patience, self._give_up)
        try:
            await asyncio.sleep(wait)
            while not await self._has_restarted():
                await asyncio.sleep(self._waits.after_failure())
        finally:
            giving_up.cancel()

    async def _has_restarted(self) -> bool:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            self._engine = await self._start_another()
        except (EngineStartError, ChannelClosed, OSError) as error:
            logger.error("the engine cannot be restarted: %s", error or type(error).__name__)
            return False
        self._connection.attach(self._engine.child)
        self._start = loop.time() - began
        tell(
            logger, "engine_restarted", f"another engine runs, after {self._start:.1f} s", seconds=round(self._start, 3)
        )
        return True

    def _give_up(self) -> None:
        """Goes on to try, but nobody waits any more."""
        self._connection.close(f"the engine ended, and none could be started for {self._patience:.0f} s")
        self._on_given_up()

    async def _start_another(self) -> EngineProcess:
        engine = await self._start_within(self._patience)
        try:
            await self._watch(engine).during(self._equip(engine.child))
        except ChannelClosed:
            await self._bury(engine, None)
            raise
        except EngineStands as error:
            await self._bury(engine, error.death)
            raise EngineStartError(error.death.how) from None
        except BaseException:
            await engine.child.stop(0)
            raise
        return engine
