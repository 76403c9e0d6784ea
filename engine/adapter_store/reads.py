"""SharedReads: reads of adapters whose images have gone: one at a time, and one for all that need the same adapter."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from ..errors import EngineUnavailable

logger = logging.getLogger(__name__)


class SharedReads:
    def __init__(self, read: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        """read: reads an adapter by its digest, when its turn has come."""
        self._read = read
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by digest
        self._turn = asyncio.Lock()

    @property
    def num_running(self) -> int:
        """Reads that wait for their turn, too."""
        return len(self._tasks)

    async def run(self, digests: Iterable[str]) -> None:
        """Waits for a read of each adapter, and begins those that do not run. A caller that is cancelled cancels no
        read. Raises what a read raises, EngineUnavailable after `close`."""
        reads = [self._task_of(digest) for digest in digests]
        if reads:
            await asyncio.wait(reads)
        for read in reads:
            if read.cancelled():
                raise EngineUnavailable("the engine was shut down")
            read.result()

    def _task_of(self, digest: str) -> "asyncio.Task[None]":
        if digest not in self._tasks:
            self._tasks[digest] = asyncio.create_task(self._take_turn(digest))
            self._tasks[digest].add_done_callback(_log_failure)
        return self._tasks[digest]

    async def _take_turn(self, digest: str) -> None:
        try:
            async with self._turn:
                await self._read(digest)
        finally:
            del self._tasks[digest]  # before another task runs, which could take it for a read that is still to come

    async def close(self) -> None:
        """Cancels all reads."""
        reads = list(self._tasks.values())
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)


def _log_failure(read: "asyncio.Task[None]") -> None:
    if not read.cancelled() and read.exception() is not None:
        logger.warning("an adapter cannot be read again: %s", read.exception())
