"""AdapterImages: the sealed images of adapters that AsyncLLM keeps for its engine, and the next one.

Owns their descriptors, and the folders of uploaded files. Which images are kept, the orders of AdapterPolicy say.
"""

import os
from collections.abc import Collection
from tempfile import TemporaryDirectory

from blora.adapters import ImageTable

from ..ipc.channel import Child
from ..ipc.engine_connection import EngineConnection
from ..ipc.messages import FromEngine, LoadAdapter
from .loader_client import PackedAdapter


class AdapterImages:
    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection
        self._descriptors: dict[str, int] = {}  # by digest
        self._uploads: dict[str, TemporaryDirectory[str]] = {}  # by digest: the files, to be read again

    async def give(self, table: ImageTable, packed: PackedAdapter) -> None:
        """Gives the engine an adapter that was read, and keeps its image; on failure closes it. table: the adapter's,
        without text. Raises EngineUnavailable."""
        try:
            await self._connection.send_with(LoadAdapter(table), packed.descriptor)
        except BaseException:
            packed.close()
            raise
        digest = table.digest
        self.drop(digest)
        self._descriptors[digest] = packed.descriptor
        if digest in self._uploads and self._uploads[digest].name != packed.source.folder:
            self._uploads.pop(digest).cleanup()
        if packed.upload is not None:
            self._uploads[digest] = packed.upload

    async def give_kept(self, engine: Child[FromEngine], table: ImageTable) -> None:
        """Gives another engine an adapter whose image is kept. Raises ChannelClosed."""
        await engine.send_with(LoadAdapter(table), self._descriptors[table.digest])

    def drop(self, digest: str) -> None:
        """Closes an image that can be read again. An unknown digest is fine."""
        descriptor = self._descriptors.pop(digest, None)
        if descriptor is not None:
            os.close(descriptor)

    def forget(self, digest: str) -> None:
        """Closes an image for good, and removes the uploaded files that it was read from."""
        self.drop(digest)
        upload = self._uploads.pop(digest, None)
        if upload is not None:
            upload.cleanup()

    def digests(self) -> Collection[str]:
        return self._descriptors.keys()

    def close(self) -> None:
        """Forgets all images."""
        for digest in [*self._descriptors, *self._uploads]:
            self.forget(digest)
