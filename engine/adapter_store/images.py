"""AdapterImages: the sealed images of adapters that AsyncLLM keeps for its engine, and the next one.

Owns their descriptors, and the folders of uploaded files. Which images are kept, the orders of AdapterPolicy say.
"""

import os
from collections.abc import Callable, Collection

from blora.adapters import ImageTable

from ..ipc.channel import Child
from ..ipc.engine_connection import EngineConnection
from ..ipc.messages import CallFailed, FromEngine, LoadAdapter
from .loader_client import PackedAdapter
from .upload_space import UploadFolder


class AdapterImages:
    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection
        self._descriptors: dict[str, int] = {}  # by digest
        self._uploads: dict[str, UploadFolder] = {}  # by digest: the files, to be read again

    async def give(self, order: Callable[[int], LoadAdapter], digest: str, packed: PackedAdapter) -> None:
        """Gives the engine an adapter that was read, and keeps its image once the engine has it; on failure closes it.
        order: makes the message of a call id. Raises what `order` raises, EngineUnavailable, EngineFault."""
        try:
            await self._connection.call(order, packed.descriptor)
        except BaseException:
            packed.close()
            raise
        self.drop(digest)
        self._descriptors[digest] = packed.descriptor
        if digest in self._uploads and self._uploads[digest].name != packed.source.folder:
            self._uploads.pop(digest).cleanup()
        if packed.upload is not None:
            self._uploads[digest] = packed.upload

    async def give_kept(self, engine: Child[FromEngine], table: ImageTable) -> str | None:
        """Gives another engine, which has been asked nothing else yet, an adapter whose image is kept. Returns the
        error if the engine cannot take it. Raises ChannelClosed."""
        call_id = self._connection.next_call_id()
        await engine.send_with(LoadAdapter(call_id, table), self._descriptors[table.digest])
        answer = await engine.receive()
        return answer.error if isinstance(answer, CallFailed) else None

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
