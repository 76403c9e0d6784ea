"""AdapterReader: the front end's side of the adapter loader child. Reads nothing itself."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from blora.adapters import AdapterRejected, AdapterReport, ImageTable, TargetModule

from .adapter_upload import IncomingAdapter
from .channel import ChannelClosed, Child, start_child
from .errors import EngineUnavailable
from .frames import (
    AdapterInspected,
    AdapterRead,
    AdapterUnreadable,
    FolderSeen,
    FromLoader,
    InspectAdapter,
    LookInto,
    ReadAdapter,
    ReadUploaded,
    ToLoader,
)

READ_TIMEOUT = 60.0  # seconds to read and pack one adapter


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter that was read: fit to be given to the engine."""

    table: ImageTable
    report: AdapterReport
    descriptor: int  # of the sealed image; whoever has it closes it


class AdapterReader:
    """Reads for one model. One order at a time; a loader that dies or hangs over a file is replaced."""

    def __init__(self, model: Path, targets: Sequence[TargetModule], dtype: str, page_bytes: int) -> None:
        """model: folder or .gguf file. targets: its modules that LoRA can land on. dtype, page_bytes: of the images."""
        self._model, self._targets = str(model), list(targets)
        self._dtype, self._page_bytes = dtype, page_bytes
        self._child: Child[FromLoader] | None = None
        self._turn = asyncio.Lock()
        self._is_closed = False

    async def read(self, path: str, roots: Sequence[str] | None) -> PackedAdapter:
        """roots: folders that it must lie in; None allows any place. Raises AdapterRejected, EngineUnavailable."""
        packed: PackedAdapter = await self._ask(path, self._order(path, roots))
        return packed

    async def read_uploaded(self, path: str, incoming: IncomingAdapter) -> PackedAdapter:
        """path: what it is called. Raises AdapterRejected, EngineUnavailable."""
        files = [(file.name, file.num_bytes) for file in incoming.files]
        # Below no root. It is ours and not the loader's, which may have to be killed over what is in it.
        with TemporaryDirectory(prefix="blora-upload-") as folder:
            order = ReadUploaded(self._order(path, None), files, folder)
            packed: PackedAdapter = await self._ask(path, order, incoming.descriptor)
        return packed

    async def look_into(self, folder: str) -> dict[str, str]:
        """As `adapter_watch.look_into`. Raises AdapterRejected for a folder that cannot be read, EngineUnavailable."""
        adapters: dict[str, str] = await self._ask(folder, LookInto(folder))
        return adapters

    async def inspect(self, path: str, roots: Sequence[str] | None) -> AdapterReport:
        """What reading it would come to. Raises EngineUnavailable."""
        try:
            report: AdapterReport = await self._ask(path, InspectAdapter(self._order(path, roots)))
        except AdapterRejected as error:  # reading it took too long, or ended the loader
            return AdapterReport(path, error.problems)
        return report

    def _order(self, path: str, roots: Sequence[str] | None) -> ReadAdapter:
        return ReadAdapter(
            path=path,
            roots=None if roots is None else list(roots),
            targets=self._targets,
            dtype=self._dtype,
            page_bytes=self._page_bytes,
            model=self._model,
        )

    async def _ask(self, path: str, order: ToLoader, descriptor: int | None = None) -> Any:
        async with self._turn:
            if self._is_closed:
                raise EngineUnavailable("the engine was shut down")
            try:
                return await asyncio.wait_for(self._answer(path, order, descriptor), READ_TIMEOUT)
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

    async def _answer(self, path: str, order: ToLoader, descriptor: int | None) -> Any:
        if self._child is not None and self._child.process.returncode is not None:
            await self.stop()  # it ended while it was idle: no fault of this adapter's
        if self._child is None:
            self._child = await start_child("blora.engine.adapter_loader", FromLoader)
        if descriptor is None:
            self._child.send(order)
        else:
            await self._child.send_with(order, descriptor)
        match await self._child.receive():
            case AdapterRead(table, report):
                return PackedAdapter(table, report, self._child.receive_descriptor())
            case AdapterInspected(report):
                return report
            case FolderSeen(adapters):
                return adapters
            case AdapterUnreadable(problems):
                raise AdapterRejected(path, problems)

    async def close(self) -> None:
        """Stops for good: loads that are under way or queued end with EngineUnavailable."""
        self._is_closed = True
        await self.stop()

    async def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.stop(0)
