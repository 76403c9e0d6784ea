"""LoadWatch: tells routers of an engine's load when it has changed, each no more often than it wants.

All watchers share one look at the engine, however many they are.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

from ..errors import InvalidRequest, LimitReached
from ..outputs import LoadSnapshot

MAX_WATCHERS = 256  # at once: a fleet of routers needs one each
MOST_PER_SECOND = 10.0


class LoadWatch:
    """Belongs to one event loop."""

    def __init__(self, look: Callable[[], Awaitable[LoadSnapshot]], check_can_begin: Callable[[], None]) -> None:
        """check_can_begin: raises EngineUnavailable when the engine ends or drains."""
        self._look, self._check_can_begin = look, check_can_begin
        self._num_watchers = 0
        self._looking: asyncio.Task[LoadSnapshot] | None = None
        self._looked_at = 0.0  # when the last look began
        self._changed = asyncio.Event()  # set by `wake`, which puts another one in its place

    async def watch(self, most_per_second: float) -> AsyncGenerator[LoadSnapshot, None]:
        """See AsyncLLM.watch_load."""
        if not most_per_second > 0:
            raise InvalidRequest("most_per_second", f"{most_per_second} is not a number above 0")
        if self._num_watchers >= MAX_WATCHERS:
            raise LimitReached(f"{self._num_watchers} clients watch the load, at most {MAX_WATCHERS} do")
        self._num_watchers += 1
        try:
            told: LoadSnapshot | None = None
            while True:
                self._check_can_begin()
                snapshot = await self._shared_look()
                if snapshot != told:
                    yield snapshot
                    told = snapshot
                await self._pause(1 / min(most_per_second, MOST_PER_SECOND))
        finally:
            self._num_watchers -= 1

    async def _shared_look(self) -> LoadSnapshot:
        now = asyncio.get_running_loop().time()
        if self._looking is None or (self._looking.done() and now >= self._looked_at + 1 / MOST_PER_SECOND):
            self._looking, self._looked_at = asyncio.ensure_future(self._look()), now
        return await asyncio.shield(self._looking)  # it may have watchers beside this one, which may leave

    async def _pause(self, seconds: float) -> None:
        """Ends early when work may not begin any more."""
        end = asyncio.get_running_loop().time() + seconds
        while (left := end - asyncio.get_running_loop().time()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
            self._check_can_begin()

    def wake(self) -> None:
        """Whether work may begin may have changed."""
        self._changed.set()
        self._changed = asyncio.Event()
