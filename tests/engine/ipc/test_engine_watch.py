"""When an engine stands, on a clock that jumps: it could run, no step is long, and yet it has not beaten."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from simulation.clock import run

from blora.engine.ipc.engine_watch import LOOKS, TIMES_EXPECTED, EngineStands, EngineWatch
from blora.engine.ipc.logbook import Activity, Entry, private_logbook
from blora.engine.ipc.messages import Nudge

T = 5.0
Life = Callable[["FakeEngine"], Coroutine[Any, Any, None]]


class FakeEngine:
    """The process is this one: it is there and not stopped."""

    def __init__(self) -> None:
        self.logbook = private_logbook(4)
        self.sent: list[Any] = []
        self.starved = 0.0
        self.is_answering = True
        self.child = SimpleNamespace(
            send=self._send, seconds_without_core=lambda: self.starved, process=SimpleNamespace(pid=os.getpid())
        )

    def _send(self, message: Any) -> None:
        self.sent.append(message)
        if self.is_answering:
            self.logbook.rest()


def watch(life: Life, seconds: float = 1000.0) -> tuple[EngineStands | None, float, FakeEngine]:
    """Watches an engine for so long. Returns why it stands, and when that was noticed."""
    engine = FakeEngine()

    async def main() -> tuple[EngineStands | None, float]:
        loop = asyncio.get_running_loop()
        began, living = loop.time(), asyncio.create_task(life(engine))
        try:
            await EngineWatch(engine, T).during(asyncio.sleep(seconds))  # type: ignore[arg-type]
            return None, loop.time() - began
        except EngineStands as standing:
            return standing, loop.time() - began
        finally:
            living.cancel()

    return *run(main), engine


def test_an_idle_engine_beats_when_it_is_nudged() -> None:
    async def wait(_: FakeEngine) -> None:
        pass

    standing, _, engine = watch(wait)
    assert standing is None and set(engine.sent) == {Nudge()}
    assert len(engine.sent) <= 1000 / T * LOOKS


def test_an_engine_that_beats_no_more_stands_within_twice_the_time() -> None:
    async def hang_at(engine: FakeEngine) -> None:
        await asyncio.sleep(100.3)
        engine.is_answering = False
        engine.logbook.note(Activity.EXECUTING, [3, 4])

    standing, seconds, engine = watch(hang_at)
    assert standing is not None and T <= seconds - 100.3 <= 2 * T
    assert standing.death.is_crash and standing.death.is_standing
    assert standing.death.entry == Entry(Activity.EXECUTING, (3, 4))
    assert "went on no more for" in standing.death.how
    assert sum(isinstance(message, Nudge) for message in engine.sent[-2:]) <= 2


def test_messages_do_not_pile_up_for_an_engine_that_stands() -> None:
    async def hang(engine: FakeEngine) -> None:
        engine.is_answering = False

    assert len(watch(hang)[2].sent) == 1


@pytest.mark.parametrize(("seconds", "stands"), [(25.0, False), (60.0, True)])
def test_a_long_step_that_was_predicted_is_progress(seconds: float, stands: bool) -> None:
    async def prefill(engine: FakeEngine) -> None:
        engine.is_answering = False
        engine.logbook.note(Activity.EXECUTING, [1], expected=30.0 / TIMES_EXPECTED)
        await asyncio.sleep(seconds)
        engine.logbook.rest()
        engine.is_answering = True

    assert (watch(prefill)[0] is not None) is stands


def test_an_engine_without_a_core_does_not_stand() -> None:
    async def starve(engine: FakeEngine) -> None:
        engine.is_answering = False
        for _ in range(300):
            engine.starved += 0.99
            await asyncio.sleep(1.0)
        engine.is_answering = True
        engine.logbook.rest()

    assert watch(starve)[0] is None


def test_work_that_ends_ends_the_watch() -> None:
    async def main() -> None:
        watch = EngineWatch(FakeEngine(), T)  # type: ignore[arg-type]
        assert await watch.during(asyncio.sleep(1, "result")) == "result"
        with pytest.raises(ZeroDivisionError):
            await watch.during(fail())
        assert len(asyncio.all_tasks()) == 1

    run(main)


async def fail() -> None:
    raise ZeroDivisionError
