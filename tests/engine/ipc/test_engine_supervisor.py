"""What becomes of requests when engines end again and again, or cannot be started, on a clock that jumps."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from simulation.clock import run
from simulation.process import SimulatedProcess

from blora.adapters import Layout
from blora.engine import EngineUnavailable
from blora.engine.config import EngineConfig
from blora.engine.facts import Facts
from blora.engine.ipc.channel import Child
from blora.engine.ipc.engine_connection import EngineConnection
from blora.engine.ipc.engine_supervisor import MAX_FRUITLESS, MIN_PATIENCE, EngineSupervisor
from blora.engine.ipc.logbook import open_logbook
from blora.engine.ipc.messages import FromEngine, Ready, StartFailed, ToEngine, Updates
from blora.scheduler import RowUpdate

READY = Ready(Facts(50, 64, 4, 12), "float32", 4096, Layout.CPU, 1)
TOKEN = Updates([RowUpdate(0, (1,))], [], {})
WELL, BAD_START, CRASH = "well", "bad start", "crash"


class House:
    """Engines that live as a test says, and what their supervisor tells."""

    def __init__(self, lives: Sequence[str]) -> None:
        """lives: of the first engines; all later ones are well."""
        self.events: list[str] = []
        self.engines: list[SimulatedProcess] = []
        self.error: Exception | None = None  # of whoever gets the updates
        self._lives = list(lives)
        self.connection = EngineConnection()
        self.supervisor = EngineSupervisor(
            self.connection,
            EngineConfig(model="m"),
            on_running=lambda: self.events.append("running"),
            on_updates=self._take,
            on_lost=lambda: self.events.append("lost"),
            on_death=lambda death: self.events.append(death.how),
            on_given_up=lambda: self.events.append("given up"),
            equip=self._equip,
            start_child=self._start_child,
        )

    async def _take(self, _: Updates) -> None:
        if self.error is not None:
            raise self.error

    async def _equip(self, _: Child[FromEngine]) -> None:
        pass

    async def _start_child(self, _: str, incoming: Any) -> Child[Any]:
        engine = SimulatedProcess(len(self.engines), "engine", incoming, ToEngine, lambda *_: None)
        self.engines.append(engine)
        engine.run(self._live(engine, self._lives.pop(0) if self._lives else WELL))
        return engine.child

    async def _live(self, engine: SimulatedProcess, life: str) -> None:
        await engine.arrive()
        engine.receive(wait=True)
        logbook = open_logbook(engine.receive_descriptor())
        await asyncio.sleep(2.0)
        if life is BAD_START:
            engine.send(StartFailed("no memory"))
            return
        engine.send(READY)
        await asyncio.sleep(1.0)
        if life is CRASH:
            raise RuntimeError("an engine dies")
        while True:
            logbook.rest()
            await asyncio.sleep(0.5)

    async def start(self) -> None:
        await self.supervisor.start(Path("m"))
        self.supervisor.supervise()
        await asyncio.sleep(0.01)

    @property
    def engine(self) -> SimulatedProcess:
        return self.engines[-1]


def housed(*lives: str) -> Callable[[Callable[[House], Coroutine[Any, Any, None]]], Callable[[], None]]:
    def decorate(test: Callable[[House], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        async def whole() -> None:
            house = House(lives)
            await house.start()
            await test(house)
            await house.supervisor.stop()
            assert all(engine.returncode is not None for engine in house.engines)

        return lambda: run(whole)

    return decorate


@housed(WELL)
async def test_an_engine_that_is_killed_is_replaced_at_once(house: House) -> None:
    house.engine.send(TOKEN)
    await asyncio.sleep(1)
    house.engine.kill()
    await asyncio.sleep(3)
    assert house.events == ["running", "lost", "was ended by SIGKILL", "running"]
    assert house.connection.is_open and len(house.engines) == 2


@housed(WELL, *[BAD_START] * 8)
async def test_requests_wait_for_a_minute_and_the_engine_is_tried_on(house: House) -> None:
    house.engine.kill()
    await asyncio.sleep(MIN_PATIENCE - 1)
    house.connection.check_expected()
    assert "given up" not in house.events
    await asyncio.sleep(2)
    with pytest.raises(EngineUnavailable, match="none could be started for 60 s"):
        house.connection.check_expected()
    await asyncio.sleep(60)
    assert house.connection.is_open
    assert house.events[-2:] == ["given up", "running"]


@housed(*[CRASH] * MAX_FRUITLESS)
async def test_requests_are_not_given_to_engines_without_end(house: House) -> None:
    await asyncio.sleep(200)
    assert house.events.count("lost") == MAX_FRUITLESS and house.events.count("given up") == 1
    assert house.connection.is_open


@housed(*[CRASH] * (MAX_FRUITLESS - 1))
async def test_any_token_is_progress(house: House) -> None:
    await asyncio.sleep(200)
    house.engine.send(TOKEN)
    await asyncio.sleep(1)
    house.engine.kill()
    await asyncio.sleep(20)
    assert house.events.count("lost") == MAX_FRUITLESS and "given up" not in house.events


@housed(WELL)
async def test_an_error_of_the_front_end_leaves_nobody_waiting(house: House) -> None:
    house.error = RuntimeError("a bug")
    house.engine.send(TOKEN)
    await asyncio.sleep(1)
    assert house.events == ["running", "lost", "given up"]
    with pytest.raises(EngineUnavailable, match="error in the front end"):
        house.connection.check_expected()
    assert house.engine.returncode is not None and len(house.engines) == 1


@housed(WELL)
async def test_an_engine_that_sends_nonsense_is_replaced(house: House) -> None:
    house.engine.send({"type": "nonsense"})
    await asyncio.sleep(20)
    assert house.events[:2] == ["running", "lost"] and house.events[-1] == "running"
    assert house.connection.is_open and len(house.engines) == 2
