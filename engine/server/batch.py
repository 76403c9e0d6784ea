"""Batch: runs pieces of work that come one after another, several at once, and tells of each when it has ended.

Knows no wire and no request.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from ..errors import QueueFull

Order = TypeVar("Order")
Result = TypeVar("Result")


class Ended(Generic[Result]):
    """The end of one order."""

    def __init__(self, index: int, work: "asyncio.Future[Result]") -> None:
        self.index = index  # its place among the orders, from 0
        self._work = work

    def result(self) -> Result:
        """Raises what the work raised."""
        return self._work.result()


async def run_batch(
    orders: AsyncGenerator[Order, None], work: Callable[[Order], Coroutine[Any, Any, Result]], most: int
) -> AsyncGenerator[Ended[Result], None]:
    """Yields the ends of all orders. most: how many run at once, with those whose end was not taken yet; the next order
    is asked for when there is room. Closing the generator cancels what runs. Raises what `orders` raises."""
    running: dict[asyncio.Future[Result], int] = {}
    coming: asyncio.Future[Order] | None = _start(anext(orders))
    num_orders = 0
    try:
        while coming is not None or running:
            may_begin = coming is not None and len(running) < most
            waited = [*running, coming] if may_begin else [*running]
            done, _ = await asyncio.wait(
                [one for one in waited if one is not None], return_when=asyncio.FIRST_COMPLETED
            )
            for ended in [one for one in running if one in done]:
                yield Ended(running.pop(ended), ended)
            if coming is not None and coming in done:
                try:
                    running[_start(work(coming.result()))] = num_orders
                    coming, num_orders = _start(anext(orders)), num_orders + 1
                except StopAsyncIteration:
                    coming = None
    finally:
        unfinished: list[asyncio.Future[Any]] = [*running, *([] if coming is None else [coming])]
        for one in unfinished:
            one.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)


async def patiently(work: Callable[[], Awaitable[Result]]) -> Result:
    """Does work that the engine refuses while it has too much to do again, when it says that it will have room: nobody
    waits for one part of a batch, and a batch alone can fill the queue. Other errors are raised, and a refusal without
    a time."""
    while True:
        try:
            return await work()
        except QueueFull as refusal:
            if refusal.retry_after is None:
                raise
            await asyncio.sleep(refusal.retry_after)


def _start(work: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(work)
