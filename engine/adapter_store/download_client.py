"""DownloadClient: the front end's side of downloads from the hub. The other side is processes/download.py.

Each download is a child process of its own. The client downloads nothing itself.
"""

import asyncio

from blora.adapters import AdapterRejected

from ..errors import EngineUnavailable, QueueFull
from ..ipc.channel import ChannelClosed, Child, StartChild, start_child
from ..ipc.messages import AdapterLocated, AdapterUnreadable, FromDownload, LocateAdapter

DOWNLOAD_TIMEOUT = 3600.0  # seconds
STALL_TIMEOUT = 120.0  # seconds in which a download that gets any bytes works a little
MAX_DOWNLOADS = 4  # at once; further ones wait
MAX_WAITING = 64


class Standstill(Exception):
    """The process is there, and does nothing."""


class DownloadClient:
    def __init__(self, max_file_bytes: int, start_child: StartChild = start_child) -> None:
        """max_file_bytes: a download ends with an error when one of its files exceeds them."""
        self._max_file_bytes, self._start_child = max_file_bytes, start_child
        self._seats = asyncio.Semaphore(MAX_DOWNLOADS)
        self._children: set[Child[FromDownload]] = set()
        self._num_orders = 0
        self._is_closed = False

    async def locate(self, path: str) -> str:
        """The folder of a hub id, after a download if the hub's cache lacks it; a path that is a folder is returned as
        it is. Cancelling the call ends the download. Raises AdapterRejected, QueueFull, EngineUnavailable."""
        if self._num_orders >= MAX_DOWNLOADS + MAX_WAITING:
            raise QueueFull(f"{self._num_orders} adapters are to be downloaded, at most {MAX_DOWNLOADS + MAX_WAITING}")
        self._num_orders += 1
        try:
            async with self._seats:
                return await self._download(path)
        finally:
            self._num_orders -= 1

    async def _download(self, path: str) -> str:
        self._check_open()
        child: Child[FromDownload] = await self._start_child("blora.engine.processes.download", FromDownload)
        self._children.add(child)
        try:
            self._check_open()
            child.send(LocateAdapter(path, self._max_file_bytes))
            answer = await asyncio.wait_for(self._answer(child), DOWNLOAD_TIMEOUT)
        except Standstill:
            answer = AdapterUnreadable([f"downloading it went on no more for {STALL_TIMEOUT:g} s"])
        except TimeoutError:
            answer = AdapterUnreadable([f"downloading it took more than {DOWNLOAD_TIMEOUT:g} s"])
        except ChannelClosed:
            self._check_open()
            answer = AdapterUnreadable(["the download ended unexpectedly"])
        finally:
            self._children.discard(child)
            await child.stop(0)
        if isinstance(answer, AdapterLocated):
            return answer.folder
        raise AdapterRejected(path, answer.problems)

    async def _answer(self, child: Child[FromDownload]) -> FromDownload:
        """Raises Standstill when the process has done nothing for a while, though it could have had a core."""
        answer = asyncio.create_task(child.receive())
        try:
            while True:
                at_work, without_core = child.seconds_at_work(), child.seconds_without_core()
                await asyncio.wait({answer}, timeout=STALL_TIMEOUT)
                if answer.done():
                    return answer.result()
                has_waited = child.seconds_without_core() - without_core > STALL_TIMEOUT / 2
                if child.seconds_at_work() == at_work and not has_waited:
                    raise Standstill
        finally:
            answer.cancel()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineUnavailable("the engine was shut down")

    async def close(self) -> None:
        """Ends the client for good: running and waiting calls of `locate` raise EngineUnavailable."""
        self._is_closed = True
        for child in list(self._children):
            await child.stop(0)
