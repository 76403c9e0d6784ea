"""AsyncAdapters: carries out for AsyncLLM what AdapterPolicy orders, over the loaders and the engine process.

Owns the intake, the images, the reads again, and the calls that wait for an unload. Knows no request: its owner tells
it whether work may begin, and aborts requests for it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from blora.adapters import AdapterRejected, AdapterReport, ImageTable

from ..errors import EngineFault
from ..identity.tenant import Tenant
from ..ipc import messages
from ..ipc.channel import Child, StartChild, start_child
from ..ipc.engine_connection import EngineConnection
from ..ipc.messages import DoneReply, FromEngine, StateReply
from ..ipc.turns import Turns
from ..outputs import AdapterEvent, AdapterInfo, AdapterSnapshot, AdapterState
from .catalog import AdapterCatalog, Looks, NamedAdapter
from .feed import AdapterFeed
from .images import AdapterImages
from .intake import AdapterIntake, AdapterSources
from .loader_client import LoaderClient, PackedAdapter
from .lookout_client import LookoutClient
from .orders import (
    AbortRequests,
    AwaitUnloaded,
    BringBack,
    DropImage,
    GiveImage,
    GiveKeptImage,
    Immediate,
    Operation,
    Order,
    Pin,
    ReadAgain,
    Result,
    Unload,
    Unpin,
    Warm,
    carry_out_async,
)
from .policy import AdapterPolicy
from .reads import SharedReads
from .shared_looks import SharedLooks
from .upload import UploadedFile
from .watched_folder import FolderFollower

DESCRIBE_COST = 50  # an estimate in microseconds, of a model of some dozens of layers


class AsyncAdapters:
    """Methods that AsyncLLM has too are documented there."""

    def __init__(
        self,
        policy: AdapterPolicy,
        catalog: AdapterCatalog,
        connection: EngineConnection,
        make_loader: Callable[[], LoaderClient],
        sources: AdapterSources,
        check_can_begin: Callable[[], None],
        abort_users: Callable[[str, Collection[str]], None],
        start_child: StartChild = start_child,
    ) -> None:
        """check_can_begin: raises EngineUnavailable when nothing new may begin. abort_users: ends the requests that
        named an adapter and got one of these contents."""
        self._policy = policy
        self._catalog = catalog
        self._connection = connection
        self._intake = AdapterIntake(make_loader(), sources, catalog, connection.check_expected, check_can_begin)
        self._images = AdapterImages(connection)
        self._loader = make_loader()  # reads adapters again, for requests that are not to wait for loads
        self._reads = SharedReads(lambda digest: self._carry_out(policy.read_again(digest)))
        self._lookout = LookoutClient(start_child)
        self._looks = SharedLooks(self._lookout.look_at)
        self._sources = sources
        self._abort_users = abort_users
        self._unloads: dict[str, asyncio.Future[None]] = {}  # by digest: what waits until it is freed
        self._turns = Turns()
        self._feed = AdapterFeed(catalog, self.all, check_can_begin)
        self._follower: FolderFollower | None = None

    # Orders.

    async def _carry_out(self, operation: Operation[Result]) -> Result:
        try:
            return await carry_out_async(operation, self._do)
        finally:
            self._wake_unloads()

    def _carry_out_now(self, orders: Iterable[Immediate]) -> None:
        for order in orders:
            self._do_now(order)
        self._wake_unloads()

    async def _do(self, order: Order) -> Any:
        match order:
            case BringBack(digests):
                await self.bring_back(digests)
            case ReadAgain():
                return await self._read_again(order)
            case GiveImage(table, packed):
                await self._give(table, packed)
            case Pin(digest):
                return await self._ask(partial(messages.PinAdapter, digest=digest, is_pinned=True))
            case Warm(digest):
                return await self._ask(partial(messages.WarmAdapter, digest=digest))
            case AwaitUnloaded(digests):
                await self._await_unloaded(digests)
            case Unpin() | DropImage() | Unload() | AbortRequests():
                self._do_now(order)
        return None

    def _do_now(self, order: Immediate) -> None:
        match order:
            case Unpin(digest):
                self._connection.send(messages.PinAdapter(self._connection.next_call_id(), digest, False))
            case DropImage(digest):
                self._images.drop(digest)
                self._connection.send(messages.DropImage(digest))
            case Unload(digest):
                self._images.forget(digest)
                self._connection.send(messages.UnloadAdapter(digest))
            case AbortRequests(name, digests):
                self._abort_users(name, digests)

    async def _ask(self, message: Callable[[int], Any]) -> bool:
        reply: DoneReply = await self._connection.call(message)
        return reply.is_done

    async def _give(self, table: ImageTable, packed: PackedAdapter) -> None:
        def order(call_id: int) -> messages.LoadAdapter:
            self._policy.check_not_set_aside(packed.source.path, table.digest)  # engines may have crashed over it
            return messages.LoadAdapter(call_id, table)

        try:
            await self._images.give(order, table.digest, packed)
        except EngineFault as error:
            raise AdapterRejected(packed.source.path, [str(error)]) from None

    async def _read_again(self, order: ReadAgain) -> PackedAdapter:
        packed = await self._loader.read_again(order.source)
        try:
            order.check(packed.table.digest)
        except AdapterRejected:
            packed.close()
            raise
        return packed

    async def _await_unloaded(self, digests: Iterable[str]) -> None:
        loop = asyncio.get_running_loop()
        going = [digest for digest in digests if self._policy.is_going(digest)]
        for unload in [self._unloads.setdefault(digest, loop.create_future()) for digest in going]:
            await asyncio.shield(unload)

    def _wake_unloads(self) -> None:
        for digest in [digest for digest in self._unloads if not self._policy.is_going(digest)]:
            unload = self._unloads.pop(digest)
            if not unload.done():
                unload.set_result(None)

    # Requests.

    def expect_looks(self) -> None:
        """The first look starts a process. A request brings a path, and the next one with it will need a look."""
        self._looks.begin()

    async def look_at(self, folders: Collection[str]) -> Looks:
        """Raises AdapterRejected for folders that do not answer, EngineUnavailable."""
        return await self._looks.look_at(folders) if folders else {}

    def is_missing(self, digests: Iterable[str]) -> bool:
        """Whether any of these adapters has to be brought back before requests that hold it can be computed."""
        return bool(self._policy.missing(digests))

    async def bring_back(self, digests: Iterable[str]) -> None:
        """Has the images of adapters that something holds in host memory again. Raises AdapterRejected for an adapter
        that is no longer what was loaded, EngineUnavailable."""
        await self._reads.run(self._policy.missing(digests))

    def settle(self) -> None:
        """Follows when requests have ended: what they alone used may go."""
        self._carry_out_now(self._policy.settle())

    # The engine.

    def note_unloaded(self, digests: Iterable[str]) -> None:
        """The engine has freed these adapters."""
        for digest in digests:
            self._policy.note_unloaded(digest)
        self._wake_unloads()

    def note_residency(self, changes: Mapping[str, bool]) -> None:
        self._catalog.note_residency(changes)

    def lose_engine(self) -> None:
        self._carry_out_now(self._policy.lose_engine())

    async def equip(self, engine: Child[FromEngine]) -> None:
        """Gives another engine, which has no user yet, what the one before had. Raises ChannelClosed."""
        await carry_out_async(self._policy.equip(), partial(self._do_for, engine))

    async def _do_for(self, engine: Child[FromEngine], order: Order) -> str | None:
        match order:
            case GiveKeptImage(table):
                return await self._images.give_kept(engine, table)
            case Unload(digest):
                engine.send(messages.UnloadAdapter(digest))
            case Pin(digest):
                call_id = self._connection.next_call_id()
                engine.send(messages.PinAdapter(call_id, digest, True))
                self._connection.expect(call_id).add_done_callback(partial(self._check_pin, digest))
        return None

    def _check_pin(self, digest: str, reply: "asyncio.Future[DoneReply]") -> None:
        error = None if reply.cancelled() else reply.exception()
        has_failed = isinstance(error, EngineFault)
        has_ended = reply.cancelled() or (error is not None and not has_failed)  # this engine, too
        if has_failed or (not has_ended and not reply.result().is_done):
            self.lose_pins([digest])

    def lose_pins(self, digests: Iterable[str]) -> None:
        """The engine keeps these adapters in memory no longer."""
        for digest in digests:
            self._carry_out_now(self._policy.lose_pin(digest))

    def set_aside(self, adapters: Mapping[str, str]) -> None:
        """The engine has crashed over these adapters, and no other one gets them. adapters: digest -> reason."""
        for digest, reason in adapters.items():
            self._policy.set_aside(digest, reason)

    def meet_engine(self) -> None:
        """Another engine has been equipped, and can be used."""
        self._carry_out_now(self._policy.meet_engine())

    async def close(self) -> None:
        """Ends everything, when the engine has been stopped and has freed all adapters."""
        for unload in self._unloads.values():
            if not unload.done():
                unload.set_result(None)
        await self._intake.close()
        await self._reads.close()
        await self._loader.close()
        await self._lookout.close()
        self._images.close()

    # Adapters come.

    # owner: the tenant for which an adapter is loaded or changed; None is for everything.

    async def load(self, name: str, path: str | Path, *, pinned: bool, owner: Tenant | None) -> AdapterInfo:
        with self._catalog.claiming(name, owner):
            report = await self._take_in(name, await self._intake.read(name, path), owner)
        return await self._report(name, report, pinned, owner)

    async def load_from_anywhere(self, name: str, path: str | Path) -> None:
        """Loads an adapter for the owner of the engine: roots limit clients only."""
        await self._take_in(name, await self._intake.read_from_anywhere(name, path))

    async def upload(
        self,
        name: str,
        files: Sequence[UploadedFile],
        chunks: AsyncIterable[bytes],
        *,
        pinned: bool,
        owner: Tenant | None,
    ) -> AdapterInfo:
        with self._catalog.claiming(name, owner):
            report = await self._take_in(name, await self._intake.read_uploaded(name, files, chunks), owner)
        return await self._report(name, report, pinned, owner)

    async def _take_in(self, name: str, packed: PackedAdapter, owner: Tenant | None = None) -> AdapterReport:
        table = self._expect(packed)
        await self._carry_out(self._policy.take_in(name, table, packed, packed.source, owner))
        return replace(packed.report, warnings=table.warnings, text=table.text)

    def _expect(self, packed: PackedAdapter) -> ImageTable:
        """Closes a refused adapter."""
        try:
            if self._sources.signers is not None:
                self._sources.signers.check(packed.source.path, packed.table.digest, packed.signatures)
            self._catalog.check_size(packed.source.path, packed.table.num_pages)
            return self._policy.expect(packed.source.path, packed.table)
        except BaseException:
            packed.close()
            raise

    async def _report(self, name: str, report: AdapterReport, pinned: bool, owner: Tenant | None) -> AdapterInfo:
        info = await (self.pin(name, owner=owner) if pinned else self.get(name))
        return replace(info, report=report)

    async def inspect(self, path: str | Path) -> AdapterReport:
        return await self._intake.inspect(path)

    def follow_folder(self) -> None:
        """Begins to load the subfolders of the watched folder, if there is one, beside other adapters."""
        folder = self._sources.watched
        if folder is not None:
            self._follower = FolderFollower(
                look=lambda: self._intake.look_into(folder),
                load=partial(self._load_watched, folder),
                unload=self.unload,
            )
            self._follower.start(self._sources.watch_interval)

    async def _load_watched(self, folder: str, name: str) -> None:
        await self._take_in(name, await self._intake.read_watched(folder, name))

    async def stop_following(self) -> None:
        if self._follower is not None:
            await self._follower.stop()

    # Adapters that are there.

    async def activate(self, name: str, version: int, *, owner: Tenant | None = None) -> AdapterInfo:
        self._catalog.check_owner(name, owner)
        await self._carry_out(self._policy.activate(name, version))
        return await self.get(name)

    async def warm(self, name: str, *, owner: Tenant | None = None) -> AdapterInfo:
        self._catalog.check_owner(name, owner)
        await self._carry_out(self._policy.warm(name))
        return await self.get(name)

    async def pin(self, name: str, pinned: bool = True, *, owner: Tenant | None = None) -> AdapterInfo:
        self._catalog.check_owner(name, owner)
        reference = await self._carry_out(self._policy.pin(name) if pinned else self._policy.unpin(name))
        return await self.get(reference)

    async def unload(self, name: str, *, abort: bool = False, owner: Tenant | None = None) -> AdapterInfo:
        info = await self.get(name)
        self._catalog.check_owner(name, owner)
        await self._carry_out(self._policy.unload(name, abort=abort))
        return info

    async def get(self, name: str) -> AdapterInfo:
        (info,) = await self._infos(lambda: [self._catalog.named(name)])
        return info

    async def all(self) -> list[AdapterInfo]:
        return await self._infos(self._catalog.all)

    async def _infos(self, choose: Callable[[], list[NamedAdapter]]) -> list[AdapterInfo]:
        """choose: the adapters; asked again when another engine has to be asked, which may have fewer."""
        adapters: list[NamedAdapter] = []

        def ask(call_id: int) -> messages.GetState:
            adapters[:] = choose()
            return messages.GetState(call_id, [adapter.table.digest for adapter in adapters])

        reply: StateReply = await self._connection.call(ask)
        infos = []
        for adapter, state in zip(adapters, reply.adapters, strict=True):  # there may be thousands
            await self._turns.take(DESCRIBE_COST)
            infos.append(self._describe(adapter, state))
        return infos

    def _describe(self, adapter: NamedAdapter, state: AdapterState) -> AdapterInfo:
        return self._catalog.describe(adapter, state, not self._policy.missing([adapter.table.digest]))

    def check_integrity(self, uses: Iterable[str]) -> None:
        """uses: a digest for each adapter of each unfinished request. Raises RuntimeError unless every adapter, every
        image and every reference to one has its owner."""
        self._policy.check_integrity(uses, self._images.digests())

    def check_idle(self) -> None:
        """Raises RuntimeError unless no adapter is being read again or on its way out."""
        if self._reads.num_running or self._policy.num_going:
            raise RuntimeError(f"{self._reads.num_running} reads run, and {self._policy.num_going} adapters are going")

    # Clients that watch.

    def watch(self) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]:
        return self._feed.watch()

    def wake_watchers(self) -> None:
        """Whether work may begin may have changed."""
        self._feed.wake()
