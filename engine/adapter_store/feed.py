"""AdapterFeed: tells clients that watch an engine's adapters what happens to them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from ..errors import LimitReached
from ..outputs import AdapterEvent, AdapterInfo, AdapterSnapshot
from .catalog import AdapterCatalog

MAX_WATCHERS = 256  # at once: each gets all news, and a fleet of front ends needs one each


class AdapterFeed:
    def __init__(
        self,
        catalog: AdapterCatalog,
        list_all: Callable[[], Awaitable[list[AdapterInfo]]],
        check_can_begin: Callable[[], None],
    ) -> None:
        """check_can_begin: raises EngineUnavailable when the engine ends or drains."""
        self._catalog = catalog
        self._list_all = list_all
        self._check_can_begin = check_can_begin
        self._num_watchers = 0
        self._changed = asyncio.Event()  # set by `wake`, which puts another one in its place
        catalog.on_change(self.wake)

    async def watch(self) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]:
        """See AsyncLLM.watch_adapters."""
        if self._num_watchers >= MAX_WATCHERS:
            raise LimitReached(f"{self._num_watchers} clients watch the adapters, at most {MAX_WATCHERS} do")
        self._num_watchers += 1
        try:
            async with aclosing(self._news()) as news:
                async for piece in news:
                    yield piece
        finally:
            self._num_watchers -= 1

    async def _news(self) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]:
        catalog = self._catalog
        revision: int | None = None
        while True:
            self._check_can_begin()
            changed = self._changed
            events = None if revision is None else catalog.events_after(revision)
            revision = catalog.revision
            if events is None:
                yield AdapterSnapshot(revision, tuple(await self._list_all()))
            else:
                for event in events:
                    yield event
            if catalog.revision == revision:
                await changed.wait()

    def wake(self) -> None:
        """The catalog has changed, or whether work may begin."""
        self._changed.set()
        self._changed = asyncio.Event()
