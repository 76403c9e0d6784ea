"""FolderFollower: keeps the loaded adapters as a watched folder has them. Is given what looks, loads and unloads."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from .adapter_watch import AdapterWatch
from .errors import AdapterError, AdapterNotFound, AdapterRejected, EngineUnavailable, QueueFull

logger = logging.getLogger(__name__)


class FolderFollower:
    def __init__(
        self,
        look: Callable[[], Awaitable[dict[str, str]]],
        load: Callable[[str], Awaitable[Any]],
        unload: Callable[[str], Awaitable[Any]],
    ) -> None:
        """look: as `adapter_watch.look_into`. load, unload: of a subfolder, by its name."""
        self._look, self._load, self._unload = look, load, unload
        self._watch = AdapterWatch()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop, and unloads that wait for running requests

    def start(self, interval: float) -> None:
        """interval: seconds between looks."""
        self._run_beside(self._follow(interval))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)

    async def _follow(self, interval: float) -> None:
        while True:
            try:
                changes = self._watch.compare(await self._look())
                for name in changes.to_unload:
                    self._run_beside(self._take_away(name))
                for name in changes.to_load:
                    await self._take_in(name)
            except (AdapterRejected, EngineUnavailable, QueueFull) as error:  # what was loaded stays
                logger.warning("the watched folder cannot be followed now: %s", error)
            await asyncio.sleep(interval)

    async def _take_in(self, name: str) -> None:
        try:
            await self._load(name)
            logger.info("adapter %s is loaded from the watched folder", name)
        except AdapterError as error:
            logger.warning("the watched adapter %s is tried again when it changes: %s", name, error)
        except (EngineUnavailable, QueueFull):
            self._watch.retry(name)
            raise
        except Exception:  # a fault of ours that this folder has found: the others are followed all the same
            logger.exception("the watched adapter %s is tried again when it changes", name)

    async def _take_away(self, name: str) -> None:
        with contextlib.suppress(AdapterNotFound, EngineUnavailable):
            await self._unload(name)
            logger.info("adapter %s has gone from the watched folder", name)


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.critical("the watched folder is not followed any more", exc_info=task.exception())
