"""AdapterIntake: has adapters read for AsyncLLM from the places that they may come from.

Owns the loader of loads, the rules about places, and the uploads that arrive. Gives the engine nothing.
"""

import asyncio
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blora.adapters import AdapterRejected, AdapterReport

from ..errors import QueueFull
from .catalog import AdapterCatalog
from .loader_client import ANYWHERE, LoaderClient, PackedAdapter, Place
from .signers import AdapterSigners
from .source import is_hub_id
from .upload import IncomingAdapter, UploadedFile
from .upload_space import UploadSpace

MAX_UPLOADS = 4  # at once: each may hold AdapterSources.upload_bytes of memory
UPLOAD_TIMEOUT = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class AdapterSources:
    """The places that adapters may come from while the engine runs."""

    roots: Sequence[str] | None  # folders, one of which has to hold a loaded adapter; None allows any, and the hub
    is_hub_allowed: bool
    upload_bytes: int  # an uploaded adapter has at most so many; 0 takes no uploads
    watched: str | None  # a folder, each subfolder of which is an adapter
    watch_interval: float  # seconds
    signers: AdapterSigners | None = None  # one of whom has to have signed each adapter


class AdapterIntake:
    def __init__(
        self,
        loader: LoaderClient,
        sources: AdapterSources,
        catalog: AdapterCatalog,
        check_can_read: Callable[[], None],
        check_can_begin: Callable[[], None],
    ) -> None:
        """check_can_read: raises EngineUnavailable while there is no engine. check_can_begin: raises it when nothing
        new may begin, too."""
        self._loader = loader
        self._sources = sources
        self._catalog = catalog
        self._check_can_read, self._check_can_begin = check_can_read, check_can_begin
        self._num_uploads = 0
        self._space = UploadSpace(sources.upload_bytes)

    # Each read raises AdapterRejected, InvalidRequest, QueueFull, EngineUnavailable. The caller owns the PackedAdapter.

    async def read(self, name: str, path: str | Path) -> PackedAdapter:
        """Reads an adapter for a client."""
        return await self._read(name, path, self._allowed_place(path))

    async def read_from_anywhere(self, name: str, path: str | Path) -> PackedAdapter:
        """Reads an adapter for the owner of the engine: roots limit clients only."""
        return await self._read(name, path, ANYWHERE)

    async def read_watched(self, folder: str, name: str) -> PackedAdapter:
        """Reads a subfolder of the watched folder."""
        return await self._read(name, Path(folder) / name, Place([folder], is_hub_allowed=False))

    async def _read(self, name: str, path: str | Path, place: Place) -> PackedAdapter:
        self._catalog.check_name(name)
        self._catalog.check_path(path)
        self._check_can_read()
        return await self._loader.read(str(path), place)

    async def read_uploaded(
        self, name: str, files: Sequence[UploadedFile], chunks: AsyncIterable[bytes]
    ) -> PackedAdapter:
        """Receives the files of an adapter and reads it."""
        self._catalog.check_name(name)
        self._check_can_begin()
        if not self._sources.upload_bytes:
            raise AdapterRejected(name, ["no uploads are taken: start with --adapter-upload-bytes"])
        if self._num_uploads >= MAX_UPLOADS:
            raise QueueFull(f"{self._num_uploads} adapters are being uploaded, at most {MAX_UPLOADS}")
        self._space.check_room(sum(file.num_bytes for file in files))
        incoming = IncomingAdapter(files, self._sources.upload_bytes)
        self._num_uploads += 1
        try:
            await _receive(incoming, chunks)
            self._check_can_read()
            return await self._loader.read_uploaded(f"upload:{name}", incoming, self._space)
        finally:
            self._num_uploads -= 1
            incoming.close()

    async def inspect(self, path: str | Path) -> AdapterReport:
        """Reports what reading an adapter would come to."""
        self._catalog.check_path(path)
        self._check_can_read()
        return self._catalog.check_room(await self._loader.inspect(str(path), self._allowed_place(path)))

    async def look_into(self, folder: str) -> dict[str, str]:
        """A look at the watched folder."""
        return await self._loader.look_into(folder)

    def _allowed_place(self, path: str | Path) -> Place:
        roots, is_hub_allowed = self._sources.roots, self._sources.is_hub_allowed
        if roots is None:
            return ANYWHERE
        if not roots and not (is_hub_allowed and is_hub_id(str(path))):
            raise AdapterRejected(str(path), ["no folder is allowed to load from: start with --adapter-root"])
        return Place(roots, is_hub_allowed)

    async def close(self) -> None:
        await self._loader.close()
        self._space.close()


async def _receive(incoming: IncomingAdapter, chunks: AsyncIterable[bytes]) -> None:
    """Raises AdapterRejected for an upload that is too slow, or that brings other bytes than announced."""
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT):
            async for chunk in chunks:
                incoming.add(chunk)
    except TimeoutError:
        raise AdapterRejected("upload", [f"it took more than {UPLOAD_TIMEOUT:g} s"]) from None
    incoming.finish()
