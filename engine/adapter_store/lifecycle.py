"""AsyncAdapters: what AsyncLLM does with adapters: read, give to the engine, name, let go, and tell who watches.

Owns the images of what the engine has, by AdapterImages, what is on its way out, and the loader. Knows no request:
whether work may begin, and that requests be aborted, it asks of whoever made it.
"""

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from blora.adapters import AdapterNotFound, AdapterRejected, AdapterReport, AdapterTooLarge, ImageTable

from ..errors import EngineUnavailable, QueueFull
from ..ipc.channel import Child
from ..ipc.engine_connection import EngineConnection
from ..ipc.messages import FromEngine, GetState, PinAdapter, PinReply, StateReply, UnloadAdapter, WarmAdapter
from ..outputs import AdapterEvent, AdapterInfo, AdapterSnapshot, AdapterState
from .catalog import AdapterCatalog, NamedAdapter
from .image_ledger import ImageLedger
from .images import AdapterImages
from .loader_client import ANYWHERE, LoaderClient, PackedAdapter, Place
from .source import is_hub_id
from .upload import IncomingAdapter, UploadedFile
from .watched_folder import FolderFollower

logger = logging.getLogger(__name__)
MAX_UPLOADS = 4  # at once: each may hold AdapterSources.upload_bytes of memory
UPLOAD_TIMEOUT = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class AdapterSources:
    """Where adapters may come from while the engine runs."""

    roots: Sequence[str] | None  # folders that loaded ones must lie in; None allows any, and the hub
    is_hub_allowed: bool
    upload_bytes: int  # of an uploaded one, at most; 0 takes none
    watched: str | None  # a folder each of whose subfolders is an adapter
    watch_interval: float  # seconds


class AsyncAdapters:
    """Methods that AsyncLLM has too do and raise what it says there."""

    def __init__(
        self,
        catalog: AdapterCatalog,
        cache: ImageLedger,
        connection: EngineConnection,
        make_loader: Callable[[], LoaderClient],
        sources: AdapterSources,
        check_can_begin: Callable[[], None],
        abort_users: Callable[[str, Collection[str]], None],
    ) -> None:
        """check_can_begin: raises EngineUnavailable when nothing new may begin. abort_users: ends the requests that
        use any of these digests under a name."""
        self._catalog = catalog
        self._cache = cache
        self._connection = connection
        self._loader = make_loader()
        self._images = AdapterImages(cache, catalog, connection, make_loader(), on_release=self.settle)
        self._sources = sources
        self._check_can_begin = check_can_begin
        self._abort_users = abort_users
        self._leaving: set[str] = set()  # what no name means, and the engine was not told yet: it may be held
        self._unloads: dict[str, asyncio.Future[None]] = {}  # by digest
        self._changed = asyncio.Event()  # set, and another put in its place, when names or serving change
        self._num_uploads = 0
        self._follower: FolderFollower | None = None

    # Life.

    def follow_folder(self) -> None:
        """From now on has loaded what the watched folder has, if there is one."""
        folder = self._sources.watched
        if folder is not None:
            self._follower = FolderFollower(
                look=lambda: self._loader.look_into(folder),
                load=lambda name: self._load(name, Path(folder) / name, Place([folder], is_hub_allowed=False)),
                unload=self.unload,
            )
            self._follower.start(self._sources.watch_interval)

    async def stop_following(self) -> None:
        if self._follower is not None:
            await self._follower.stop()

    async def give_all(self, engine: Child[FromEngine]) -> None:
        """Gives another engine, which nobody uses yet, what the one before had. Raises ChannelClosed."""
        self.forget_unpublished()
        await self._images.give_all(engine)
        for digest in filter(self._catalog.is_pinned, self._cache.digests()):
            if digest in self._cache:  # or it is being brought back for its pin
                call_id = self._connection.next_call_id()
                engine.send(PinAdapter(call_id, digest, True))
                self._connection.expect(call_id).add_done_callback(partial(self._check_pin, digest))

    def _check_pin(self, digest: str, reply: "asyncio.Future[PinReply]") -> None:
        has_failed = reply.cancelled() or reply.exception() is not None  # this engine has ended, too
        if has_failed or reply.result().is_done or not self._catalog.is_pinned(digest):
            return
        names = ", ".join(f"{name}@{number}" for name, number in self._catalog.aliases(digest))
        logger.warning("there is no room any more to pin %s: the pin ends", names)
        self._catalog.drop_pins(digest)
        self._cache.note_unpinned()
        self.settle()
        self.wake_watchers()

    def lose_engine(self) -> None:
        """An engine that is gone has freed everything."""
        self._catalog.break_off_events()
        self.forget_unpublished()

    def note_residency(self, changes: Mapping[str, bool]) -> None:
        self._catalog.note_residency(changes)
        self.wake_watchers()

    def forget_unpublished(self) -> None:
        """What no name means is not loaded again."""
        self._leaving |= {digest for digest in self._cache.digests() if not self._catalog.is_published(digest)}
        self.settle()

    async def close(self) -> None:
        """When the engine has been stopped: all that it had is free."""
        for unload in self._unloads.values():
            if not unload.done():
                unload.set_result(None)
        await self._loader.close()
        await self._images.close()

    def check_integrity(self, uses: Iterable[str]) -> None:
        """uses: a digest for each adapter of each unfinished request. Raises RuntimeError unless every image and every
        reference to one has its owner."""
        self._images.check_integrity(uses)
        self._catalog.check_integrity(self._cache.digests())

    def check_idle(self) -> None:
        """Raises RuntimeError unless no adapter is being read again or on its way out."""
        self._images.check_idle()
        if self._leaving:
            raise RuntimeError(f"adapters {self._leaving} are still on their way out")

    # They come.

    async def load(self, name: str, path: str | Path, *, pinned: bool) -> AdapterInfo:
        return await self._report(name, await self._load(name, path, self._allowed_place(path)), pinned)

    async def load_from_anywhere(self, name: str, path: str | Path) -> None:
        """For whoever started the engine: roots limit those who come later."""
        await self._load(name, path, ANYWHERE)

    async def upload(
        self, name: str, files: Sequence[UploadedFile], chunks: AsyncIterable[bytes], *, pinned: bool
    ) -> AdapterInfo:
        self._catalog.check_name(name)
        self._check_can_begin()
        if not self._sources.upload_bytes:
            raise AdapterRejected(name, ["no uploads are taken: start with --adapter-upload-bytes"])
        if self._num_uploads >= MAX_UPLOADS:
            raise QueueFull(f"{self._num_uploads} adapters are being uploaded, at most {MAX_UPLOADS}")
        incoming = IncomingAdapter(files, self._sources.upload_bytes)
        self._num_uploads += 1
        try:
            await self._receive(incoming, chunks)
            path = f"upload:{name}"
            self._check_can_read(path)
            report = await self._take_in(name, path, await self._loader.read_uploaded(path, incoming))
        finally:
            self._num_uploads -= 1
            incoming.close()
        return await self._report(name, report, pinned)

    async def _receive(self, incoming: IncomingAdapter, chunks: AsyncIterable[bytes]) -> None:
        try:
            async with asyncio.timeout(UPLOAD_TIMEOUT):
                async for chunk in chunks:
                    incoming.add(chunk)
        except TimeoutError:
            raise AdapterRejected("upload", [f"it took more than {UPLOAD_TIMEOUT:g} s"]) from None
        incoming.finish()

    async def _report(self, name: str, report: AdapterReport, pinned: bool) -> AdapterInfo:
        info = await (self.pin(name) if pinned else self.get(name))
        return replace(info, report=report)

    async def inspect(self, path: str | Path) -> AdapterReport:
        self._check_can_read(path)
        return self._catalog.check_room(await self._loader.inspect(str(path), self._allowed_place(path)))

    def _allowed_place(self, path: str | Path) -> Place:
        roots, is_hub_allowed = self._sources.roots, self._sources.is_hub_allowed
        if roots is None:
            return ANYWHERE
        if not roots and not (is_hub_allowed and is_hub_id(str(path))):
            raise AdapterRejected(str(path), ["no folder is allowed to load from: start with --adapter-root"])
        return Place(roots, is_hub_allowed)

    def _check_can_read(self, path: str | Path) -> None:
        self._catalog.check_path(path)
        self._connection.check_open()

    async def _load(self, name: str, path: str | Path, place: Place) -> AdapterReport:
        self._catalog.check_name(name)
        self._check_can_read(path)
        return await self._take_in(name, str(path), await self._loader.read(str(path), place))

    async def _take_in(self, name: str, path: str, packed: PackedAdapter) -> AdapterReport:
        with self._catalog.expecting(packed.table.digest):
            table = self._check(path, packed)
            await self._images.give(table, packed)
            lost = self._catalog.publish(name, path, table)
        self._leaving.discard(table.digest)
        unload = self._unloads.pop(table.digest, None)
        if unload is not None:
            unload.set_result(None)  # it was on its way out and is wanted again
        self._let_go(lost)
        return replace(packed.report, warnings=table.warnings, text=table.text)

    def _check(self, path: str, packed: PackedAdapter) -> ImageTable:
        """Takes in what it says about text, too. Closes one that is refused."""
        try:
            self._catalog.check_size(path, packed.table.num_pages)
            return self._catalog.add_text(path, packed.table)
        except BaseException:
            packed.close()
            raise

    @asynccontextmanager
    async def _in_memory(self, digest: str) -> AsyncIterator[None]:
        """Meanwhile an adapter's image stays in host memory, into which it is brought back first."""
        with self._images.holding(digest):
            await self._images.bring_back([digest])
            yield

    def is_missing(self, digests: Iterable[str]) -> bool:
        """Whether any of these adapters has to be brought back before requests that hold it can be computed."""
        return bool(self._cache.missing(digests))

    async def bring_back(self, digests: Iterable[str]) -> None:
        """Raises AdapterRejected for an adapter that is no longer what was loaded, EngineUnavailable."""
        await self._images.bring_back(digests)

    # They go.

    async def activate(self, name: str, version: int) -> AdapterInfo:
        digest = self._catalog.resolve(f"{name}@{version}")
        async with self._in_memory(digest):  # a version that cannot be had any more is not activated
            self._let_go(self._catalog.activate(name, version))
        return await self.get(name)

    async def unload(self, name: str, *, abort: bool = False) -> AdapterInfo:
        info = await self.get(name)
        digests = self._catalog.withdraw(name)
        if abort:
            self._abort_users(info.name, digests)
        loop = asyncio.get_running_loop()
        gone = [digest for digest in digests if not self._catalog.is_published(digest)]
        unloads = [self._unloads.setdefault(digest, loop.create_future()) for digest in gone]
        self._let_go(digests)
        for unload in unloads:
            await asyncio.shield(unload)
        return info

    def _let_go(self, digests: Iterable[str]) -> None:
        """Adapters may have lost a name: with the last one they go, with the last pinned one they may be evicted."""
        self.wake_watchers()
        for digest in digests:
            if not self._catalog.is_published(digest):
                self._leaving.add(digest)
            elif not self._catalog.is_pinned(digest):
                self._unpin(digest)
        self.settle()

    def _unpin(self, digest: str) -> None:
        self._cache.note_unpinned()
        with suppress(EngineUnavailable):  # the next engine is not told of the pin
            self._connection.send(PinAdapter(self._connection.next_call_id(), digest, False))

    def settle(self) -> None:
        """After something may have let go of adapters: what no name means goes, idle images beyond the limit go."""
        for digest in [digest for digest in self._leaving if not self._cache.is_used(digest)]:
            self._leaving.remove(digest)
            if self._connection.is_open:
                with suppress(EngineUnavailable):  # it has ended, and this is forgotten when that is noticed
                    self._connection.send(UnloadAdapter(digest))
            else:
                self.forget(digest)  # an engine that is gone has freed it; the next one is not given it
        self._images.drop_excess()

    def forget(self, digest: str) -> None:
        """The engine has freed an adapter."""
        unload = self._unloads.pop(digest, None)
        if unload is not None and not unload.done():
            unload.set_result(None)
        if not self._catalog.is_published(digest):
            self._catalog.forget(digest)
            self._images.forget(digest)

    # Where they are.

    async def warm(self, name: str) -> AdapterInfo:
        digest = self._catalog.resolve(name)
        async with self._in_memory(digest):
            if not (await self._connection.call(lambda call_id: WarmAdapter(call_id, digest))).is_done:
                raise AdapterTooLarge(f"there is no room now to warm adapter {name!r}")
        return await self.get(name)

    async def pin(self, name: str, pinned: bool = True) -> AdapterInfo:
        adapter = self._catalog.named(name)
        self._catalog.set_pinned(adapter.reference, pinned)  # at once: requests are checked against it from now on
        digest = adapter.table.digest
        if pinned:
            await self._pin(adapter)
        with suppress(AdapterNotFound):  # it has gone meanwhile
            self._catalog.note_pin(adapter.reference)
            self.wake_watchers()
        if not self._catalog.is_pinned(digest) and self._catalog.is_published(digest):
            self._unpin(digest)
        self.settle()
        return await self.get(adapter.reference)

    async def _pin(self, adapter: NamedAdapter) -> None:
        digest = adapter.table.digest
        try:
            async with self._in_memory(digest):
                if not (await self._connection.call(lambda call_id: PinAdapter(call_id, digest, True))).is_done:
                    raise AdapterTooLarge(f"there is no room now to pin adapter {adapter.reference!r}")
        except (AdapterRejected, AdapterTooLarge):
            with suppress(AdapterNotFound):  # it has gone meanwhile, and its pin with it
                self._catalog.set_pinned(adapter.reference, False)
            raise

    async def get(self, name: str) -> AdapterInfo:
        adapter = self._catalog.named(name)
        return self._describe(adapter, *await self._states([adapter.table.digest]))

    async def all(self) -> list[AdapterInfo]:
        adapters = self._catalog.all()
        states = await self._states([adapter.table.digest for adapter in adapters])
        return [self._describe(adapter, state) for adapter, state in zip(adapters, states, strict=True)]

    def _describe(self, adapter: NamedAdapter, state: AdapterState) -> AdapterInfo:
        return self._catalog.describe(adapter, state, adapter.table.digest in self._cache)

    async def _states(self, digests: list[str]) -> list[AdapterState]:
        reply: StateReply = await self._connection.call(lambda call_id: GetState(call_id, digests))
        return reply.adapters

    # Who watches.

    async def watch(self) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]:
        catalog = self._catalog
        revision: int | None = None
        while True:
            self._check_can_begin()
            changed = self._changed
            events = None if revision is None else catalog.events_after(revision)
            revision = catalog.revision
            if events is None:
                yield AdapterSnapshot(revision, tuple(await self.all()))
            else:
                for event in events:
                    yield event
            if catalog.revision == revision:
                await changed.wait()

    def wake_watchers(self) -> None:
        """Names have changed, or whether work may begin."""
        self._changed.set()
        self._changed = asyncio.Event()
