"""LookoutClient: the front end's side of the lookout. The other side is processes/lookout.py.

The lookout is a child process that says whether the files of adapters have changed. The client looks at no file, so
that a slow disk does not hold up the event loop.
"""

import asyncio
from collections.abc import Sequence

from blora.adapters import AdapterRejected

from ..ipc.channel import ChannelClosed, StartChild, start_child
from ..ipc.kept_child import KeptChild
from ..ipc.messages import FoldersSeen, LookAt
from ..ipc.patience import in_time

LOOK_TIMEOUT = 60.0  # seconds


class LookoutClient:
    """One look at a time. A lookout that dies or hangs over a folder is replaced."""

    def __init__(self, start_child: StartChild = start_child) -> None:
        self._child: KeptChild[FoldersSeen] = KeptChild("blora.engine.processes.lookout", FoldersSeen, start_child)

    async def look_at(self, folders: Sequence[str]) -> dict[str, str]:
        """The fingerprints of adapters' files, by folder. Raises AdapterRejected for folders that do not answer,
        EngineUnavailable."""
        answer = asyncio.create_task(self._answer(LookAt(list(folders))))
        try:
            seen = await in_time(answer, LOOK_TIMEOUT, self._child.seconds_without_core)
            return dict(zip(folders, seen.fingerprints, strict=True))
        except TimeoutError:
            problem = f"looking whether its files have changed took more than {LOOK_TIMEOUT:g} s"
        except ChannelClosed:
            problem = "the lookout ended while looking whether its files have changed"
        finally:
            answer.cancel()
        await self._child.stop()
        self._child.check_open()
        raise AdapterRejected(", ".join(folders), [problem])

    async def _answer(self, order: LookAt) -> FoldersSeen:
        child = await self._child.running()
        child.send(order)
        return await child.receive()

    async def close(self) -> None:
        """Ends the client for good: a running look raises EngineUnavailable."""
        await self._child.close()
