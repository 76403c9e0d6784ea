"""FolderFollower: keeps the loaded adapters equal to the subfolders of a watched folder.

A look at the folder is a fingerprint of each subfolder that holds an adapter (`look_into`), such as "sql" or "org/sql".
FolderComparison tells from one look after another which subfolders to load and which names to unload. The follower does
so again and again; its owner gives it the functions that look, load and unload. Clients that watch the engine's
adapters are not this file's matter.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blora.adapters import is_valid_name
from blora.adapters.peft.fingerprint import fingerprint
from blora.adapters.peft.folder import CHECKPOINT_PATTERN, is_adapter_file
from blora.adapters.peft.text import MAX_FILE_BYTES

from ..errors import AdapterError, AdapterNotFound, AdapterRejected, EngineUnavailable, QueueFull

logger = logging.getLogger(__name__)

Look = Mapping[str, str]  # name of a subfolder -> its fingerprint, which changes when its files do


def look_into(folder: Path) -> dict[str, str]:
    """A look at a folder: the subfolders that hold an adapter's configuration and weights, whose files it does not
    open. A subfolder without an adapter's files is looked into, too, for names such as "org/sql". Raises OSError for an
    unreadable folder."""
    look = {name: _fingerprint(folder / name) for name in _subfolders(folder)}
    for owner in [name for name, found in look.items() if not found]:
        with contextlib.suppress(OSError):
            names = _subfolders(folder / owner)
            look |= {f"{owner}/{name}": _fingerprint(folder / owner / name) for name in names}
    return {name: found for name, found in look.items() if found and is_valid_name(name)}


def _fingerprint(folder: Path) -> str:
    return fingerprint(folder, list(MAX_FILE_BYTES))


def _subfolders(folder: Path) -> list[str]:
    """The names of subfolders that may hold adapters. The folder of an adapter has none; a trainer's checkpoints are no
    adapters of their own."""
    with os.scandir(folder) as found:
        entries = list(found)
    if any(is_adapter_file(entry.name) for entry in entries):
        return []
    named = [entry for entry in entries if is_valid_name(entry.name) and not CHECKPOINT_PATTERN.fullmatch(entry.name)]
    return [entry.name for entry in named if _is_folder(entry)]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links, or a place without permission: the other entries are looked at all the same
        return False


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of subfolders."""

    to_load: list[str]
    to_unload: list[str]


class FolderComparison:
    """Compares looks. A subfolder is loaded when two looks in a row find it the same, so that it is no longer being
    written, and its name is unloaded when two looks in a row miss it."""

    def __init__(self) -> None:
        self._last: Look = {}
        self._taken: dict[str, str] = {}  # name -> the fingerprint that `compare` told to load

    def compare(self, look: Look) -> Changes:
        """Takes the next look, and tells what to do since the one before."""
        last, self._last = self._last, dict(look)
        to_load = [name for name, found in look.items() if last.get(name) == found != self._taken.get(name)]
        to_unload = [name for name in self._taken if name not in look and name not in last]
        self._taken |= {name: look[name] for name in to_load}
        for name in to_unload:
            del self._taken[name]
        return Changes(sorted(to_load), sorted(to_unload))

    def retry(self, name: str) -> None:
        """The load failed for no fault of the subfolder: the next look tells to load it again."""
        self._taken.pop(name, None)


class FolderFollower:
    def __init__(
        self,
        look: Callable[[], Awaitable[dict[str, str]]],
        load: Callable[[str], Awaitable[Any]],
        unload: Callable[[str], Awaitable[Any]],
    ) -> None:
        """look: returns what `look_into` does. load, unload: are called with the name of a subfolder."""
        self._look, self._load, self._unload = look, load, unload
        self._comparison = FolderComparison()
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
                changes = self._comparison.compare(await self._look())
                for name in changes.to_unload:
                    self._run_beside(self._take_away(name))
                for name in changes.to_load:
                    await self._take_in(name)
            except (AdapterRejected, EngineUnavailable, QueueFull) as error:  # the loaded adapters stay
                logger.warning("the watched folder cannot be followed now: %s", error)
            await asyncio.sleep(interval)

    async def _take_in(self, name: str) -> None:
        try:
            await self._load(name)
            logger.info("adapter %s is loaded from the watched folder", name)
        except AdapterError as error:
            logger.warning("the watched adapter %s is not loaded until its files change: %s", name, error)
        except (EngineUnavailable, QueueFull):
            self._comparison.retry(name)
            raise
        except Exception:  # a fault of blora that this subfolder has brought out: the other ones are followed on
            logger.exception("the watched adapter %s is not loaded until its files change", name)

    async def _take_away(self, name: str) -> None:
        with contextlib.suppress(AdapterNotFound, EngineUnavailable):
            await self._unload(name)
            logger.info("adapter %s has gone from the watched folder", name)


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.critical("the watched folder is not followed any more", exc_info=task.exception())
