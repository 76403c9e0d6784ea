"""Turns: however many tasks have long work, one turn of the loop has a bounded part of it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from blora.engine.ipc.turns import SHARE, Turns


def in_loop(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(body(), 60)

    asyncio.run(limited())


class TurnCounter:
    """Counts the turns of the running loop."""

    def __init__(self) -> None:
        self.number = 0
        self._count()

    def _count(self) -> None:
        self.number += 1
        asyncio.get_running_loop().call_soon(self._count)


def test_a_turn_has_at_most_two_shares_of_work_whoever_has_it() -> None:
    async def body() -> None:
        turns, counter = Turns(), TurnCounter()
        costs: Counter[int] = Counter()
        order: list[int] = []

        async def work(index: int) -> None:
            for _ in range(5):
                await turns.take(SHARE // 4)
                costs[counter.number] += SHARE // 4
                order.append(index)

        await asyncio.gather(*map(work, range(50)))
        assert max(costs.values()) <= 2 * SHARE
        assert set(order[:54]) == set(range(50))  # behind the first share, nobody is served twice before all others
        assert len(costs) <= 2 + sum(costs.values()) // SHARE * 2  # and no turn is wasted

    in_loop(body)


def test_light_work_does_not_wait() -> None:
    async def body() -> None:
        turns, counter = Turns(), TurnCounter()
        for _ in range(10):
            await turns.take(SHARE // 10)
        assert counter.number == 1

    in_loop(body)


def test_a_piece_larger_than_a_share_has_it_alone() -> None:
    async def body() -> None:
        turns, counter = Turns(), TurnCounter()
        seen = []
        for _ in range(3):
            await turns.take(10 * SHARE)
            seen.append(counter.number)
        assert len(set(seen)) == 3

    in_loop(body)


def test_a_cancelled_task_holds_nobody_up() -> None:
    async def body() -> None:
        turns = Turns()
        first, second, third = (asyncio.create_task(turns.take(SHARE)) for _ in range(3))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, third)
        assert second.cancelled()

    in_loop(body)
