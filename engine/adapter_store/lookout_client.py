"""LookoutClient: the front end's side of the lookout. The other side is processes/lookout.py.

The lookout is a child process that says whether the files of adapters have changed. The client looks at no file, so
that a slow disk does not hold up the event loop.
"""

import asyncio
from collections.abc import Sequence

from blora.adapters import AdapterRejected

from ..errors import EngineUnavailable
from ..ipc.channel import ChannelClosed, Child, StartChild, start_child
from ..ipc.messages import FoldersSeen, LookAt
from ..ipc.patience import in_time

LOOK_TIMEOUT = 60.0  # seconds


class LookoutClient:
    """One look at a time. A lookout that dies or hangs over a folder is replaced."""

    def __init__(self, start_child: StartChild = start_child) -> None:
        self._start_child = start_child
        self._child: Child[FoldersSeen] | None = None
        self._is_closed = False

    async def look_at(self, folders: Sequence[str]) -> dict[str, str]:
        """The fingerprints of adapters' files, by folder. Raises AdapterRejected for folders that do not answer,
        EngineUnavailable."""
        answer = asyncio.create_task(self._answer(LookAt(list(folders))))
        try:
            seen = await in_time(answer, LOOK_TIMEOUT, self._seconds_without_core)
            return dict(zip(folders, seen.fingerprints, strict=True))
        except TimeoutError:
            problem = f"looking whether its files have changed took more than {LOOK_TIMEOUT:g} s"
        except ChannelClosed:
            problem = "the lookout ended while looking whether its files have changed"
        finally:
            answer.cancel()
        await self._stop()
        self._check_open()
        raise AdapterRejected(", ".join(folders), [problem])

    async def _answer(self, order: LookAt) -> FoldersSeen:
        self._check_open()
        if self._child is not None and self._child.process.returncode is not None:
            await self._stop()  # it ended while it was idle, which is no fault of the folder
        if self._child is None:
            self._child = await self._start_child("blora.engine.processes.lookout", FoldersSeen)
            if self._is_closed:
                raise ChannelClosed
        self._child.send(order)
        return await self._child.receive()

    def _seconds_without_core(self) -> float:
        return 0.0 if self._child is None else self._child.seconds_without_core()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineUnavailable("the engine was shut down")

    async def close(self) -> None:
        """Ends the client for good: a running look raises EngineUnavailable."""
        self._is_closed = True
        await self._stop()

    async def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.stop(0)
