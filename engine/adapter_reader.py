"""AdapterReader: the front end's side of the adapter loader child. Reads nothing itself."""

import asyncio

from blora.adapters import AdapterRejected, ImageTable

from .channel import ChannelClosed, Child, start_child
from .errors import EngineUnavailable
from .frames import AdapterRead, FromLoader, ReadAdapter

READ_TIMEOUT = 60.0  # seconds to read and pack one adapter


class AdapterReader:
    """One order at a time. A loader that dies or hangs over a file is replaced."""

    def __init__(self) -> None:
        self._child: Child[FromLoader] | None = None
        self._turn = asyncio.Lock()
        self._is_closed = False

    async def read(self, path: str, order: ReadAdapter) -> tuple[ImageTable, int]:
        """The packed adapter's table and the descriptor of its sealed image, which the caller closes."""
        async with self._turn:
            if self._is_closed:
                raise EngineUnavailable("the engine was shut down")
            try:
                return await asyncio.wait_for(self._read(path, order), READ_TIMEOUT)
            except TimeoutError:
                problem = f"reading it took more than {READ_TIMEOUT:g} s"
            except ChannelClosed:
                problem = "the loader ended while reading it"
            except asyncio.CancelledError:
                await self.stop()  # its answer would be taken for that of the next order
                raise
            await self.stop()
            if self._is_closed:
                raise EngineUnavailable("the engine was shut down")
            raise AdapterRejected(path, [problem])

    async def _read(self, path: str, order: ReadAdapter) -> tuple[ImageTable, int]:
        if self._child is not None and self._child.process.returncode is not None:
            await self.stop()  # it ended while it was idle: no fault of this adapter's
        if self._child is None:
            self._child = await start_child("blora.engine.adapter_loader", FromLoader)
        self._child.send(order)
        answer = await self._child.receive()
        if isinstance(answer, AdapterRead):
            return answer.table, self._child.receive_descriptor()
        raise AdapterRejected(path, answer.problems)

    async def close(self) -> None:
        """Stops for good: loads that are under way or queued end with EngineUnavailable."""
        self._is_closed = True
        await self.stop()

    async def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.stop(0)
