"""Calls over engines that end: the next one is asked, and a call that may itself be what ends them is given up."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from simulation.clock import run

from blora.engine.errors import EngineFault, EngineUnavailable
from blora.engine.ipc.engine_connection import MAX_ENGINES, EngineConnection
from blora.engine.ipc.messages import CallFailed, DoneReply, WarmAdapter


class FakeEngine:
    """Answers no call, or with `answer`."""

    def __init__(self, answer: type[Any] | None = None, *fields: Any) -> None:
        self.asked: list[WarmAdapter] = []
        self.answer, self.fields = answer, fields
        self.has_news = asyncio.Event()

    def send(self, message: WarmAdapter) -> None:
        self.asked.append(message)
        self.has_news.set()

    async def receive(self) -> Any:
        await self.has_news.wait()
        self.has_news.clear()
        return SimpleNamespace() if self.answer is None else self.answer(self.asked[-1].call_id, *self.fields)


async def ask(connection: EngineConnection) -> "asyncio.Task[Any]":
    call = asyncio.create_task(connection.call(lambda call_id: WarmAdapter(call_id, "a")))
    await asyncio.sleep(0)
    return call


def test_a_call_that_engines_end_over_is_given_up() -> None:
    async def main() -> None:
        connection, engines = EngineConnection(), [FakeEngine() for _ in range(MAX_ENGINES + 1)]
        connection.attach(engines[0])  # type: ignore[arg-type]
        call = await ask(connection)
        for engine in engines[1:]:
            connection.lose()
            connection.attach(engine)  # type: ignore[arg-type]
            for _ in range(3):
                await asyncio.sleep(0)
        with pytest.raises(EngineUnavailable, match=f"{MAX_ENGINES} engines in a row"):
            await call
        assert [len(engine.asked) for engine in engines] == [1] * MAX_ENGINES + [0]

    run(main)


@pytest.mark.parametrize("is_fault", [False, True])
def test_an_answer_or_a_fault_ends_the_call(is_fault: bool) -> None:
    async def main() -> None:
        engine = FakeEngine(CallFailed, "MemoryError") if is_fault else FakeEngine(DoneReply, True)
        connection = EngineConnection()
        connection.attach(engine)  # type: ignore[arg-type]
        call, reading = await ask(connection), asyncio.create_task(connection.receive())
        if is_fault:
            with pytest.raises(EngineFault, match="MemoryError"):
                await call
        else:
            assert (await call).is_done
        reading.cancel()

    run(main)
