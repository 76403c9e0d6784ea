"""FolderFollower: keeps the loaded adapters as a watched folder has them. Is given what looks, loads and unloads."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blora.adapters import is_valid_name

from ..errors import AdapterError, AdapterNotFound, AdapterRejected, EngineUnavailable, QueueFull
from .source import FILES

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


Look = Mapping[str, str]  # name of a subfolder -> what changes when its files do


def look_into(folder: Path) -> dict[str, str]:
    """The subfolders that hold an adapter's two files. Opens none of them. Raises OSError for an unreadable folder."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_valid_name(entry.name) and _is_folder(entry)]
    looks = {name: _fingerprint(folder / name) for name in names}
    return {name: fingerprint for name, fingerprint in looks.items() if fingerprint}


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a loop, or to where we may not look: the others are looked at all the same
        return False


def _fingerprint(folder: Path) -> str:
    """Empty when one of the two files is missing."""
    states = {name: _state(folder / name) for name in FILES}
    is_whole = all(states[name] for name in FILES[:2])
    return " ".join(states.values()) if is_whole else ""


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return ""
    return f"{path.name}:{state.st_ino}:{state.st_size}:{state.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class Changes:
    to_load: list[str]
    to_unload: list[str]


class AdapterWatch:
    def __init__(self) -> None:
        self._last: Look = {}
        self._taken: dict[str, str] = {}  # what was loaded, or could not be

    def compare(self, look: Look) -> Changes:
        """Takes in the next look."""
        last, self._last = self._last, dict(look)
        to_load = [name for name, found in look.items() if last.get(name) == found != self._taken.get(name)]
        to_unload = [name for name in self._taken if name not in look and name not in last]
        self._taken |= {name: look[name] for name in to_load}
        for name in to_unload:
            del self._taken[name]
        return Changes(sorted(to_load), sorted(to_unload))

    def retry(self, name: str) -> None:
        """Its load did not fail for what it is: it is told again at the next look."""
        self._taken.pop(name, None)
