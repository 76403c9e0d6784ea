"""Tenants take turns, whoever leaves meanwhile; what waits is bounded."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from blora.engine.errors import QueueFull
from blora.engine.ipc import tenant_turns
from blora.engine.ipc.tenant_turns import TenantTurns


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 60))


def test_tenants_take_turns_and_each_is_served_in_order() -> None:
    async def body() -> None:
        turns, served = TenantTurns("texts", 1000), []

        async def work(tenant: str, number: int) -> None:
            async with turns.turn(tenant, 1):
                served.append(f"{tenant}{number}")
                await asyncio.sleep(0)

        wanted = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("c", 0)]
        await asyncio.gather(*(work(tenant, number) for tenant, number in wanted))
        assert served == ["a0", "a1", "b0", "c0", "a2", "b1"]

    run(body())


def test_one_tenant_fills_half_and_another_finds_room() -> None:
    async def body() -> None:
        turns = TenantTurns("texts", 10)

        async def wait(tenant: str, size: int) -> None:
            async with turns.turn(tenant, size):
                pass

        async with turns.turn("a", 100):  # what is worked on does not wait
            waiting = [asyncio.create_task(wait("a", 5))]
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="^5 characters of texts wait"):
                await wait("a", 1)
            waiting.append(asyncio.create_task(wait("b", 5)))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull):
                await wait("c", 1)
        await asyncio.gather(*waiting)
        await wait("a", 100)

    run(body())


def test_invented_tenants_take_turns_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_turns, "MAX_TENANTS", 2)

    async def body() -> None:
        turns, served = TenantTurns("texts", 1000), []

        async def work(tenant: str) -> None:
            async with turns.turn(tenant, 1):
                served.append(tenant)
                await asyncio.sleep(0)

        await asyncio.gather(*map(work, ("first", "a", "b", "x1", "x2", "x3", "a", "b")))
        assert served == ["first", "a", "b", "x1", "a", "b", "x2", "x3"]

    run(body())


def test_a_tenant_whose_request_leaves_keeps_its_place() -> None:
    async def body() -> None:
        turns, served = TenantTurns("texts", 1000), []

        async def work(name: str) -> None:
            async with turns.turn(name[0], 1):
                served.append(name)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(work(name)) for name in ("first", "a0", "a1", "b0")]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert served == ["first", "a0", "b0"]

    run(body())


@pytest.mark.parametrize("seed", range(20))
def test_no_turn_is_lost_or_given_twice_when_waiters_leave(seed: int) -> None:
    async def body() -> None:
        random, turns, at_work = Random(seed), TenantTurns("texts", 1000), []

        async def work(tenant: str) -> None:
            async with turns.turn(tenant, 1):
                assert not at_work
                at_work.append(tenant)
                try:
                    await asyncio.sleep(0)
                finally:
                    at_work.pop()

        tasks = [asyncio.create_task(work(random.choice("abc"))) for _ in range(30)]
        for task in tasks:
            if random.random() < 0.5:
                task.cancel()
            if random.random() < 0.5:
                await asyncio.sleep(0)
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.wait_for(work("a"), 60)
        assert not turns._places and not turns._sizes and not turns._is_taken

    run(body())
