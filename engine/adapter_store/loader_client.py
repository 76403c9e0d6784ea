"""AdapterReader: the front end's side of the adapter loader child. Reads nothing itself."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from blora.adapters import AdapterRejected, AdapterReport, ImageTable, TargetModule

from ..errors import EngineUnavailable, QueueFull
from ..ipc.channel import ChannelClosed, Child, start_child
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
from ..memory.page_size import max_elements
from .download_client import AdapterHub
from .host_cache import Source
from .source import is_hub_id
from .upload import IncomingAdapter

READ_TIMEOUT = 60.0  # seconds to read and pack one adapter
MAX_TIMEOUTS = 10  # in a row, of a loader that spends them waiting for a core: it is nicer than everybody
MAX_WAITING = 256  # orders
DOWNLOAD_ROOM = 4  # times the arena: a file in float32 beside a table that is not loaded
LEAST_DOWNLOAD = 64 << 20  # bytes of a file


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter that was read: fit to be given to the engine."""

    table: ImageTable
    report: AdapterReport
    source: Source
    descriptor: int  # of the sealed image
    upload: TemporaryDirectory[str] | None = None  # what source is in, if it is ours

    def close(self) -> None:
        """For whoever has it and keeps none of it."""
        os.close(self.descriptor)
        if self.upload is not None:
            self.upload.cleanup()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client may have adapters read."""

    roots: Sequence[str] | None  # folders that they must lie in; None allows any
    is_hub_allowed: bool


ANYWHERE = Place(None, is_hub_allowed=True)


class AdapterReader:
    """Reads for one model. One order at a time; a loader that dies or hangs over a file is replaced.

    What is cancelled before its turn is never begun. Later the loader's answer is awaited and dropped: it would be
    taken for that of the next order, and another loader takes longer to start.
    """

    def __init__(self, model: Path, targets: Sequence[TargetModule], engine: Ready) -> None:
        """model: folder or .gguf file. targets: its modules that LoRA can land on. engine: what reads the images."""
        self._model, self._targets, self._engine = str(model), list(targets), engine
        num_pages = engine.facts.num_pages
        self._max_elements = max_elements(num_pages, engine.page_bytes, engine.dtype) * engine.num_shards
        self._hub = AdapterHub(max(DOWNLOAD_ROOM * num_pages * engine.num_shards * engine.page_bytes, LEAST_DOWNLOAD))
        self._child: Child[FromLoader] | None = None
        self._turn = asyncio.Lock()
        self._num_orders = 0
        self._is_closed = False

    async def read(self, path: str, place: Place) -> PackedAdapter:
        """Raises AdapterRejected, QueueFull, EngineUnavailable."""
        order = await self._locate(path, place)
        packed: PackedAdapter = await self._ask(lambda: self._exchange(path, order))
        return replace(packed, report=replace(packed.report, path=path))

    async def read_again(self, source: Source) -> PackedAdapter:
        """What was read there before, or is there now. Raises AdapterRejected, QueueFull, EngineUnavailable."""
        order = self._order(source.folder, source.roots)
        packed: PackedAdapter = await self._ask(lambda: self._exchange(source.path, order))
        return packed

    async def read_uploaded(self, path: str, incoming: IncomingAdapter) -> PackedAdapter:
        """path: what it is called. Its files are kept, to be read again. Raises AdapterRejected, QueueFull,
        EngineUnavailable."""
        # A descriptor of our own: one who is cancelled closes `incoming`.
        packed: PackedAdapter = await self._ask(
            lambda: self._exchange_uploaded(path, incoming, os.dup(incoming.descriptor))
        )
        return packed

    async def look_into(self, folder: str) -> dict[str, str]:
        """As `adapter_watch.look_into`. Raises AdapterRejected for a folder that cannot be read, QueueFull,
        EngineUnavailable."""
        adapters: dict[str, str] = await self._ask(lambda: self._exchange(folder, LookInto(folder)))
        return adapters

    async def inspect(self, path: str, place: Place) -> AdapterReport:
        """What reading it would come to. Raises QueueFull, EngineUnavailable."""
        try:
            order = InspectAdapter(await self._locate(path, place))
            report: AdapterReport = await self._ask(lambda: self._exchange(path, order))
        except AdapterRejected as error:  # it is not on the hub; reading it took too long, or ended the loader
            return AdapterReport(path, error.problems)
        return replace(report, path=path)

    async def _locate(self, path: str, place: Place) -> ReadAdapter:
        """An order to read what a client has named."""
        if not place.is_hub_allowed or not is_hub_id(path):
            return self._order(path, place.roots)
        folder = await self._hub.locate(path)
        if folder == path or place.roots is None:
            return self._order(folder, place.roots)
        return self._order(folder, [str(Path(folder).parents[1])])  # the hub's cache links within a repository

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
            exchange.add_done_callback(_drop)
            raise

    async def _exchange_uploaded(self, path: str, incoming: IncomingAdapter, descriptor: int) -> Any:
        """Closes the descriptor."""
        files = [(file.name, file.num_bytes) for file in incoming.files]
        try:
            # Below no root. It is ours and not the loader's, which may have to be killed over what is in it.
            folder = TemporaryDirectory(prefix="blora-upload-")
            try:
                order = ReadUploaded(self._order(path, None), files, folder.name)
                return replace(await self._exchange(path, order, descriptor), upload=folder)
            except BaseException:
                folder.cleanup()
                raise
        finally:
            os.close(descriptor)

    async def _exchange(self, path: str, order: ToLoader, descriptor: int | None = None) -> Any:
        if self._is_closed:
            raise EngineUnavailable("the engine was shut down")
        answer = asyncio.create_task(self._answer(path, order, descriptor))
        try:
            return await self._in_time(answer)
        except TimeoutError:
            problem = f"reading it took more than {READ_TIMEOUT:g} s"
        except ChannelClosed:
            problem = "the loader ended while reading it"
        finally:
            answer.cancel()
        await self.stop()
        if self._is_closed:
            raise EngineUnavailable("the engine was shut down")
        raise AdapterRejected(path, [problem])

    async def _in_time(self, answer: "asyncio.Task[Any]") -> Any:
        """Raises TimeoutError. No fault of an adapter's is that the machine is busy."""
        for _ in range(MAX_TIMEOUTS):
            before = self._seconds_without_core()
            await asyncio.wait({answer}, timeout=READ_TIMEOUT)
            if answer.done():
                return answer.result()
            if self._seconds_without_core() - before < READ_TIMEOUT / 2:
                break
        raise TimeoutError

    def _seconds_without_core(self) -> float:
        return 0.0 if self._child is None else self._child.seconds_without_core()

    async def _answer(self, path: str, order: ToLoader, descriptor: int | None) -> Any:
        if self._child is not None and self._child.process.returncode is not None:
            await self.stop()  # it ended while it was idle: no fault of this adapter's
        if self._child is None:
            self._child = await start_child("blora.engine.processes.loader", FromLoader)
            if self._is_closed:  # while it started
                raise ChannelClosed
        if descriptor is None:
            self._child.send(order)
        else:
            await self._child.send_with(order, descriptor)
        match await self._child.receive():
            case AdapterRead(table, report):
                return PackedAdapter(table, report, _source(path, order), self._child.receive_descriptor())
            case AdapterInspected(report):
                return report
            case FolderSeen(adapters):
                return adapters
            case AdapterUnreadable(problems):
                raise AdapterRejected(path, problems)

    async def close(self) -> None:
        """Stops for good: loads that are under way or queued end with EngineUnavailable."""
        self._is_closed = True
        await self._hub.close()
        await self.stop()

    async def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.stop(0)


def _source(path: str, order: ToLoader) -> Source:
    """Where what an order has brought can be read again."""
    match order:
        case ReadAdapter(folder, roots):
            return Source(path, str(Path(folder).absolute()), roots)
        case ReadUploaded():
            return Source(path, order.folder)
    raise ValueError(f"{type(order).__name__} brings no adapter")


def _drop(exchange: "asyncio.Task[Any]") -> None:
    """Of an answer that nobody takes."""
    if not exchange.cancelled() and exchange.exception() is None and isinstance(exchange.result(), PackedAdapter):
        exchange.result().close()
