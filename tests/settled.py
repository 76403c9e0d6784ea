"""Checks after a test of AsyncLLM that the engine has everything back."""

import asyncio
import time

from blora.engine import AsyncLLM

LONGEST = 30.0  # seconds to wait, on a busy machine
INTERVAL = 0.02


async def check_settled(llm: AsyncLLM) -> None:
    """Waits until the engine has no request left, and checks that no request's pages are held."""
    deadline = time.monotonic() + LONGEST
    info = await llm.get_info()
    while (info.num_running, info.num_waiting) != (0, 0) and time.monotonic() < deadline:
        await asyncio.sleep(INTERVAL)
        info = await llm.get_info()
    assert (info.num_running, info.num_waiting, info.num_free_pages) == (0, 0, info.num_pages)
    assert all(adapter.num_requests == 0 for adapter in await llm.list_adapters())
    llm.check_idle()
