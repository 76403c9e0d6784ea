"""Patience with a child: how long an answer may take. Time in which the child got no core is no fault of its work."""

import asyncio
from collections.abc import Callable
from typing import Any

MAX_TIMEOUTS = 10  # in a row, for a child that spends them waiting for a core: its priority is lower than the engine's


async def in_time(answer: "asyncio.Task[Any]", seconds: float, seconds_without_core: Callable[[], float]) -> Any:
    """Returns the answer. seconds_without_core: of the child, so far. Raises TimeoutError, and what the answer raises;
    leaves it running."""
    for _ in range(MAX_TIMEOUTS):
        before = seconds_without_core()
        await asyncio.wait({answer}, timeout=seconds)
        if answer.done():
            return answer.result()
        if seconds_without_core() - before < seconds / 2:
            break
    raise TimeoutError
