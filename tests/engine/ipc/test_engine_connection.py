"""Whoever needs an engine waits for the next one, and is answered once; nobody waits for one that does not come, and a
call that may itself be what ends engines is given up."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from simulation.clock import run

from blora.engine import EngineFault, EngineUnavailable
from blora.engine.ipc.channel import ChannelClosed
from blora.engine.ipc.engine_connection import MAX_ENGINES, EngineConnection
from blora.engine.ipc.messages import CallFailed, DoneReply, WarmAdapter


class FakeChild:
    """The front end's end of a channel, without a process."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.is_gone = False  # and nobody has heard of it
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    def send(self, message: Any) -> None:
        if self.is_gone:
            raise ChannelClosed
        self.sent.append(message)

    async def send_with(self, message: Any, descriptor: int) -> None:
        await asyncio.sleep(0.005)
        self.send((message, descriptor))

    async def receive(self) -> Any:
        return await self.answers.get()


Test = Callable[[EngineConnection], Coroutine[Any, Any, None]]


def connected(test: Test) -> Callable[[], None]:
    """A test with a connection that nothing is attached to, on a clock that jumps."""

    async def whole() -> None:
        connection = EngineConnection()
        reading = asyncio.create_task(read(connection))
        await test(connection)
        reading.cancel()

    def run_test() -> None:
        run(whole)

    run_test.__doc__ = test.__doc__
    return run_test


async def read(connection: EngineConnection) -> None:
    while True:
        if not connection.is_open:
            await asyncio.sleep(0.001)
            continue
        receiving = asyncio.create_task(connection.receive())
        while connection.is_open and not receiving.done():
            await asyncio.sleep(0.001)
        receiving.cancel()


def attach(connection: EngineConnection) -> FakeChild:
    child = FakeChild()
    connection.attach(child)  # type: ignore[arg-type]
    return child


def warm(call_id: int) -> WarmAdapter:
    return WarmAdapter(call_id, f"asked in call {call_id}")


@connected
async def test_before_the_start_everything_is_refused(connection: EngineConnection) -> None:
    for refused in (connection.check_open, connection.check_expected):
        with pytest.raises(EngineUnavailable, match="not started"):
            refused()
    with pytest.raises(EngineUnavailable, match="not started"):
        await connection.call(warm)
    connection.send("dropped")


@connected
async def test_a_call_is_answered(connection: EngineConnection) -> None:
    child = attach(connection)
    call = asyncio.create_task(connection.call(warm))
    await asyncio.sleep(0.01)
    (message,) = child.sent
    child.answers.put_nowait(DoneReply(message.call_id, True))
    assert (await call).is_done


@connected
async def test_a_call_that_an_engine_has_not_answered_is_made_anew_for_the_next_one(
    connection: EngineConnection,
) -> None:
    engines = []
    call = asyncio.create_task(connection.call(warm, descriptor=7))
    for _ in range(3):
        engines.append(attach(connection))
        await asyncio.sleep(0.01)
        assert connection.lose() is engines[-1]  # type: ignore[comparison-overlap]
        assert not call.done()
        await asyncio.sleep(0.01)
    asked = [message for engine in engines for message in engine.sent]
    assert [descriptor for _, descriptor in asked] == [7, 7, 7]
    assert len({message.call_id for message, _ in asked}) == 3
    last = attach(connection)
    await asyncio.sleep(0.01)
    last.answers.put_nowait(DoneReply(last.sent[0][0].call_id, False))
    assert not (await call).is_done


@connected
async def test_a_call_that_engines_end_over_is_given_up(connection: EngineConnection) -> None:
    engines = []
    call = asyncio.create_task(connection.call(warm))
    for _ in range(MAX_ENGINES + 1):
        engines.append(attach(connection))
        await asyncio.sleep(0.01)
        connection.lose()
        await asyncio.sleep(0.01)
    with pytest.raises(EngineUnavailable, match=f"{MAX_ENGINES} engines in a row"):
        await call
    assert [len(engine.sent) for engine in engines] == [1] * MAX_ENGINES + [0]


@connected
async def test_an_engine_that_is_gone_is_asked_nothing_more(connection: EngineConnection) -> None:
    gone = attach(connection)
    gone.is_gone = True
    calls = [asyncio.create_task(connection.call(warm)), asyncio.create_task(connection.call(warm, 3))]
    connection.send("dropped")
    await asyncio.sleep(1)
    connection.lose()
    await asyncio.sleep(1)
    child = attach(connection)
    await asyncio.sleep(1)
    assert len(child.sent) == 2 and not gone.sent
    for message in (child.sent[0], child.sent[1][0]):
        child.answers.put_nowait(DoneReply(message.call_id, True))
    await asyncio.gather(*calls)


@connected
async def test_who_waits_is_refused_when_no_engine_comes(connection: EngineConnection) -> None:
    attach(connection)
    connection.lose()
    connection.check_expected()
    with pytest.raises(EngineUnavailable, match="being restarted"):
        connection.check_open()
    call = asyncio.create_task(connection.call(warm))
    await asyncio.sleep(1)
    connection.close("it could not be started")
    with pytest.raises(EngineUnavailable, match="could not be started"):
        await call
    with pytest.raises(EngineUnavailable, match="could not be started"):
        connection.check_expected()
    attach(connection)
    connection.check_open()


@connected
async def test_an_error_is_an_answer(connection: EngineConnection) -> None:
    child = attach(connection)
    call = asyncio.create_task(connection.call(warm))
    await asyncio.sleep(0.01)
    child.answers.put_nowait(CallFailed(child.sent[0].call_id, "KeyError"))
    with pytest.raises(EngineFault, match="KeyError"):
        await call
