"""AdapterImages: the sealed page images that AsyncLLM keeps for its engine: given, dropped and read again.

Owns their descriptors, the reads that are under way and the folders of uploads. Which images stay, ImageLedger says.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory

from blora.adapters import AdapterRejected, ImageTable

from ..errors import EngineUnavailable
from ..ipc.channel import Child
from ..ipc.engine_connection import EngineConnection
from ..ipc.messages import DropImage, FromEngine, LoadAdapter, UnloadAdapter
from .catalog import AdapterCatalog
from .image_ledger import ImageLedger
from .loader_client import LoaderClient, PackedAdapter

logger = logging.getLogger(__name__)


class AdapterImages:
    def __init__(
        self,
        cache: ImageLedger,
        catalog: AdapterCatalog,
        connection: EngineConnection,
        loader: LoaderClient,
        on_release: Callable[[], None],
    ) -> None:
        """loader: for what is read again, which is not to wait for loads. on_release: after `holding`, which may have
        been the last to use its adapter."""
        self._cache, self._catalog = cache, catalog
        self._connection, self._loader = connection, loader
        self._on_release = on_release
        self._descriptors: dict[str, int] = {}  # by digest
        self._uploads: dict[str, TemporaryDirectory[str]] = {}  # by digest: the files, to be read again
        self._held: Counter[str] = Counter()  # by `holding`
        self._reads: dict[str, asyncio.Task[None]] = {}  # by digest
        self._turn = asyncio.Lock()  # of reads

    # They come.

    async def give(self, table: ImageTable, packed: PackedAdapter) -> None:
        """Gives the engine an adapter that was read, and keeps its image. table: its, without text. Raises
        EngineUnavailable."""
        try:
            await self._connection.send_with(LoadAdapter(table), packed.descriptor)
        except BaseException:
            packed.close()
            raise
        digest = table.digest
        self._close(digest)
        self._descriptors[digest] = packed.descriptor
        self._cache.add(digest, table.num_bytes, packed.source)
        if digest in self._uploads and self._uploads[digest].name != packed.source.folder:
            self._uploads.pop(digest).cleanup()
        if packed.upload is not None:
            self._uploads[digest] = packed.upload

    async def give_all(self, engine: Child[FromEngine]) -> None:
        """Gives another engine, which nobody uses yet, what there are images of. Raises ChannelClosed."""
        given = list(self._descriptors)
        for digest in given:
            if digest in self._descriptors:
                await engine.send_with(LoadAdapter(self._catalog.table_of(digest)), self._descriptors[digest])
        for digest in given:
            if digest not in self._descriptors:  # unloaded meanwhile
                engine.send(UnloadAdapter(digest))

    @contextmanager
    def holding(self, digest: str) -> Iterator[None]:
        """Meanwhile an adapter is not forgotten, and its image not dropped."""
        self._cache.hold(digest)
        self._held[digest] += 1
        try:
            yield
        finally:
            self._held[digest] -= 1
            self._cache.release(digest)
            self._on_release()

    async def bring_back(self, digests: Iterable[str]) -> None:
        """Has adapters that are held read again where they have no image; who needs the same one waits for one read.
        Raises AdapterRejected for what is no longer what was loaded, EngineUnavailable."""
        reads = [self._read_of(digest) for digest in self._cache.missing(digests)]
        if reads:
            await asyncio.wait(reads)
        for read in reads:
            if read.cancelled():
                raise EngineUnavailable("the engine was shut down")
            read.result()

    def _read_of(self, digest: str) -> "asyncio.Task[None]":
        if digest not in self._reads:
            self._reads[digest] = asyncio.create_task(self._read(digest))
            self._reads[digest].add_done_callback(_note_failure)
        return self._reads[digest]

    async def _read(self, digest: str) -> None:
        try:
            async with self._turn:
                if not self._cache.is_used(digest) or digest in self._cache:
                    return  # nobody waits any more, or it was loaded under another name
                with self.holding(digest):
                    await self._read_again(digest)
        finally:
            del self._reads[digest]  # before anybody else runs, who could take it for one that is still to come

    async def _read_again(self, digest: str) -> None:
        source = self._cache.source_of(digest)
        try:
            packed = await self._loader.read_again(source)
            if packed.table.digest != digest:
                packed.close()
                raise AdapterRejected(source.folder, [f"its digest is {packed.table.digest}"])
        except AdapterRejected as error:
            self._cache.num_failures += 1
            raise source.changed(digest, error.problems) from None
        await self.give(self._catalog.table_of(digest), packed)
        self._cache.num_reads += 1

    # They go.

    def drop_excess(self) -> None:
        """Drops idle images beyond the limit. What is given to an engine that is being started stays until it runs."""
        if self._connection.is_open:
            for digest in self._cache.take_excess(self._catalog.is_pinned):
                self._close(digest)
                with suppress(EngineUnavailable):  # then it has ended, and its images with it
                    self._connection.send(DropImage(digest))

    def forget(self, digest: str) -> None:
        """An adapter that nobody uses is gone for good."""
        self._close(digest)
        self._cache.forget(digest)
        upload = self._uploads.pop(digest, None)
        if upload is not None:
            upload.cleanup()

    def _close(self, digest: str) -> None:
        descriptor = self._descriptors.pop(digest, None)
        if descriptor is not None:
            os.close(descriptor)

    async def close(self) -> None:
        reads = list(self._reads.values())
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        await self._loader.close()
        for digest in list(self._descriptors):
            self._close(digest)
        for upload in self._uploads.values():
            upload.cleanup()
        self._uploads.clear()

    def check_idle(self) -> None:
        """Raises RuntimeError when an image is being read again."""
        if self._reads:
            raise RuntimeError(f"adapters {list(self._reads)} are being read again")

    def check_integrity(self, uses: Iterable[str]) -> None:
        """uses: a digest for each use by a request. Raises RuntimeError unless what is counted is there."""
        self._cache.check_integrity([*uses, *self._held.elements()], self._descriptors.keys())


def _note_failure(read: "asyncio.Task[None]") -> None:
    if not read.cancelled() and read.exception() is not None:
        logger.warning("an adapter cannot be read again: %s", read.exception())
