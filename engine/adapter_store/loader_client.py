"""LoaderClient: the front end's side of the adapter loader. The other side is processes/loader.py.

The loader is a child process that reads, checks and packs adapters. The client reads no file.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blora.adapters import AdapterRejected, AdapterReport, ImageTable, TargetModule

from ..errors import QueueFull
from ..ipc.channel import ChannelClosed, StartChild, start_child
from ..ipc.kept_child import KeptChild
from ..ipc.messages import (
    AdapterInspected,
    AdapterRead,
    AdapterUnreadable,
    FolderSeen,
    FromLoader,
    InspectAdapter,
    LookInto,
    ReadAdapter,
    ReadUploaded,
    Ready,
    ToLoader,
)
from ..ipc.patience import in_time
from ..memory.page_size import max_elements
from .download_client import DownloadClient
from .source import Source, is_hub_id
from .upload import IncomingAdapter
from .upload_space import UploadFolder, UploadSpace

READ_TIMEOUT = 60.0  # seconds to read and pack one adapter
MAX_WAITING = 256  # orders
DOWNLOAD_ROOM = 4  # arenas: an adapter in float32 beside a table that is not loaded may take so much
LEAST_DOWNLOAD = 64 << 20  # bytes of a file that are allowed for any arena


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter that was read, ready to be given to the engine."""

    table: ImageTable
    report: AdapterReport
    source: Source
    descriptor: int  # of the sealed image
    signatures: bytes | None = None  # content of the file of signatures, if there is one
    upload: UploadFolder | None = None  # the folder of the source, where it is a copy of uploaded files

    def close(self) -> None:
        """Closes the image and removes the files, for an owner that keeps neither."""
        os.close(self.descriptor)
        if self.upload is not None:
            self.upload.cleanup()


@dataclass(frozen=True, slots=True)
class Place:
    """The places that a client may have adapters read from."""

    roots: Sequence[str] | None  # folders, one of which has to hold the adapter's; None allows any
    is_hub_allowed: bool


ANYWHERE = Place(None, is_hub_allowed=True)


class LoaderClient:
    """Has adapters read for one model. The loader works on one order at a time; a loader that dies or hangs over a
    file is replaced.

    An order that is cancelled before its turn is never begun. The answer to one that is cancelled later is awaited and
    closed: it would be taken for the answer to the next order, and starting another loader takes longer.
    """

    def __init__(
        self, model: Path, targets: Sequence[TargetModule], engine: Ready, start_child: StartChild = start_child
    ) -> None:
        """model: folder or .gguf file. targets: the model's modules that LoRA can change. engine: the engine that the
        images are packed for."""
        self._model, self._targets, self._engine = str(model), list(targets), engine
        num_pages = engine.facts.num_pages
        self._max_elements = max_elements(num_pages, engine.page_bytes, engine.dtype) * engine.num_shards
        arena_bytes = num_pages * engine.num_shards * engine.page_bytes
        self._downloads = DownloadClient(max(DOWNLOAD_ROOM * arena_bytes, LEAST_DOWNLOAD), start_child)
        self._child: KeptChild[FromLoader] = KeptChild("blora.engine.processes.loader", FromLoader, start_child)
        self._turn = asyncio.Lock()
        self._num_orders = 0

    async def read(self, path: str, place: Place) -> PackedAdapter:
        """Reads an adapter for a client. Raises AdapterRejected, QueueFull, EngineUnavailable."""
        order = await self._locate(path, place)
        packed: PackedAdapter = await self._ask(lambda: self._exchange(path, order))
        return replace(packed, report=replace(packed.report, path=path))

    async def read_again(self, source: Source) -> PackedAdapter:
        """Reads the adapter that the source holds now, which may differ from the one loaded before. Raises
        AdapterRejected, QueueFull, EngineUnavailable."""
        order = self._order(source.folder, source.roots)
        packed: PackedAdapter = await self._ask(lambda: self._exchange(source.path, order))
        return packed

    async def read_uploaded(self, path: str, incoming: IncomingAdapter, space: UploadSpace) -> PackedAdapter:
        """Reads an adapter from uploaded files, which are kept in `space` to be read again. path: names the upload.
        Raises AdapterRejected, QueueFull, LimitReached, EngineUnavailable."""
        # The exchange has a descriptor of its own: a caller that is cancelled closes `incoming`.
        packed: PackedAdapter = await self._ask(
            lambda: self._exchange_uploaded(path, incoming, space, os.dup(incoming.descriptor))
        )
        return packed

    async def look_into(self, folder: str) -> dict[str, str]:
        """A look at a watched folder, see `watched_folder.look_into`. Raises AdapterRejected for a folder that cannot
        be read, QueueFull, EngineUnavailable."""
        look: dict[str, str] = await self._ask(lambda: self._exchange(folder, LookInto(folder)))
        return look

    async def inspect(self, path: str, place: Place) -> AdapterReport:
        """Reports what reading an adapter would come to. Raises QueueFull, EngineUnavailable."""
        try:
            order = InspectAdapter(await self._locate(path, place))
            report: AdapterReport = await self._ask(lambda: self._exchange(path, order))
        except AdapterRejected as error:  # the hub lacks it, or reading it took too long or ended the loader
            return AdapterReport(path, error.problems)
        return replace(report, path=path)

    async def _locate(self, path: str, place: Place) -> ReadAdapter:
        """An order to read the adapter that a client has named."""
        if not place.is_hub_allowed or not is_hub_id(path):
            return self._order(path, place.roots)
        folder = await self._downloads.locate(path)
        if folder == path or place.roots is None:
            return self._order(folder, place.roots)
        return self._order(folder, [folder])

    def _order(self, path: str, roots: Sequence[str] | None) -> ReadAdapter:
        return ReadAdapter(
            path=path,
            roots=None if roots is None else list(roots),
            targets=self._targets,
            dtype=self._engine.dtype,
            page_bytes=self._engine.page_bytes,
            layout=self._engine.layout,
            max_elements=self._max_elements,
            vocab_size=self._engine.facts.vocab_size,
            model=self._model,
            num_shards=self._engine.num_shards,
        )

    async def _ask(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """work: begins an exchange with the loader."""
        if self._num_orders >= MAX_WAITING:
            raise QueueFull(f"{self._num_orders} adapters wait to be read, at most {MAX_WAITING}")
        self._num_orders += 1
        try:
            await self._turn.acquire()
            exchange = asyncio.create_task(work())
            exchange.add_done_callback(lambda _: self._turn.release())
        finally:
            self._num_orders -= 1
        try:
            return await asyncio.shield(exchange)
        except asyncio.CancelledError:
            exchange.add_done_callback(_close_answer)
            raise

    async def _exchange_uploaded(
        self, path: str, incoming: IncomingAdapter, space: UploadSpace, descriptor: int
    ) -> Any:
        """Closes the descriptor."""
        files = [(file.name, file.num_bytes) for file in incoming.files]
        try:
            # The folder lies below no root. The front end owns it, because the loader may be killed while it writes.
            folder = space.take(incoming.num_bytes)
            try:
                order = ReadUploaded(self._order(path, None), files, folder.name)
                return replace(await self._exchange(path, order, descriptor), upload=folder)
            except BaseException:
                folder.cleanup()
                raise
        finally:
            os.close(descriptor)

    async def _exchange(self, path: str, order: ToLoader, descriptor: int | None = None) -> Any:
        """Sends an order and returns its answer. A loader that fails over it is stopped."""
        answer = asyncio.create_task(self._answer(path, order, descriptor))
        try:
            return await in_time(answer, READ_TIMEOUT, self._child.seconds_without_core)
        except TimeoutError:
            problem = f"reading it took more than {READ_TIMEOUT:g} s"
        except ChannelClosed:
            problem = "the loader ended while reading it"
        finally:
            answer.cancel()
        await self._child.stop()
        self._child.check_open()
        raise AdapterRejected(path, [problem])

    async def _answer(self, path: str, order: ToLoader, descriptor: int | None) -> Any:
        child = await self._child.running()
        if descriptor is None:
            child.send(order)
        else:
            await child.send_with(order, descriptor)
        match await child.receive():
            case AdapterRead(table, report, fingerprint, signatures):
                source = replace(_source(path, order), fingerprint=fingerprint)
                return PackedAdapter(table, report, source, child.receive_descriptor(), signatures)
            case AdapterInspected(report):
                return report
            case FolderSeen(adapters):
                return adapters
            case AdapterUnreadable(problems):
                raise AdapterRejected(path, problems)

    async def close(self) -> None:
        """Ends the client for good: running and waiting orders raise EngineUnavailable."""
        await self._downloads.close()
        await self._child.close()


def _source(path: str, order: ToLoader) -> Source:
    """Returns the place where the adapter of an order can be read again."""
    match order:
        case ReadAdapter(folder, roots):
            return Source(path, str(Path(folder).absolute()), roots)
        case ReadUploaded():
            return Source(path, order.folder)
    raise ValueError(f"{type(order).__name__} brings no adapter")


def _close_answer(exchange: "asyncio.Task[Any]") -> None:
    """Closes an adapter that was read for a caller that has gone."""
    if not exchange.cancelled() and exchange.exception() is None and isinstance(exchange.result(), PackedAdapter):
        exchange.result().close()
