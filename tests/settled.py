"""Checks after a test of AsyncLLM that the engine has everything back."""

import asyncio

from blora.engine import AsyncLLM

LONGEST = 4.0  # seconds to wait
INTERVAL = 0.02


async def check_settled(llm: AsyncLLM) -> None:
    """Waits until the engine has no request left, and checks that no request's pages are held."""
    for _ in range(int(LONGEST / INTERVAL)):
        info = await llm.get_info()
        if (info.num_running, info.num_waiting) == (0, 0):
            break
        await asyncio.sleep(INTERVAL)
    assert (info.num_running, info.num_waiting, info.num_free_pages) == (0, 0, info.num_pages)
    assert all(adapter.num_requests == 0 for adapter in await llm.list_adapters())
    llm.check_idle()
