"""IncomingAdapter: the files of an adapter that arrive as bytes. The bytes go into memory without a name in any file
system.

No byte is taken before the announced sizes are allowed. No file is handed on unless its digest is the announced one.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from blora.adapters import AdapterRejected

from ..errors import InvalidRequest
from ..ipc.sealed_memory import close_for_writing, create_memory, write_all
from .source import FILE_PATTERNS, is_file_of_adapter

# An upload is worth reading when its chunks hold bytes: so many for each, beside a number of chunks that is free.
LEAST_CHUNK, NUM_FREE_CHUNKS = 4096, 1024
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file as a client announces it."""

    name: str  # such as "adapter_config.json"
    num_bytes: int
    sha256: str  # in hexadecimal


def check_files(files: Sequence[UploadedFile], max_bytes: int) -> None:
    """Raises InvalidRequest unless the list names files of an adapter with their sizes and digests, AdapterRejected for
    files that are too large."""
    names = [file.name for file in files]
    for name in names:
        if not is_file_of_adapter(name):
            raise InvalidRequest("files", f"{name!r:.140} is none of {', '.join(FILE_PATTERNS)}")
    if len(set(names)) < len(names):
        raise InvalidRequest("files", "a name is announced twice")
    for file in files:
        if not DIGEST_PATTERN.fullmatch(file.sha256) or file.num_bytes < 1:
            raise InvalidRequest(
                "files", f"{file.name} is announced without its size, or without its sha256 in hexadecimal"
            )
    num_bytes = sum(file.num_bytes for file in files)
    if num_bytes > max_bytes:
        raise AdapterRejected("upload", [f"{num_bytes} bytes are announced, at most {max_bytes} are taken"])


class IncomingAdapter:
    """`descriptor` is the memory that holds the files, one after another. `finish` seals it, `close` closes it."""

    def __init__(self, files: Sequence[UploadedFile], max_bytes: int) -> None:
        check_files(files, max_bytes)
        self.files = tuple(files)
        self.descriptor = create_memory()
        self._missing = [file.num_bytes for file in files]  # bytes that each file still lacks
        self._hashes = [hashlib.sha256() for _ in files]
        self._index = 0  # of the file that arrives now
        self.num_bytes = sum(file.num_bytes for file in files)
        self._num_chunks_left = NUM_FREE_CHUNKS + self.num_bytes // LEAST_CHUNK

    def add(self, chunk: bytes) -> None:
        """Takes the next bytes, which may belong to several files. Raises AdapterRejected for more bytes than were
        announced, InvalidRequest for ever more chunks with hardly any bytes."""
        self._num_chunks_left -= 1
        if self._num_chunks_left < 0:
            reason = f"the chunks are too many for {self.num_bytes} bytes: send at least {LEAST_CHUNK} in each"
            raise InvalidRequest("chunk", reason)
        rest = memoryview(chunk)
        while rest:
            if self._index == len(self.files):
                raise AdapterRejected("upload", ["more bytes came than were announced"])
            part = rest[: self._missing[self._index]]
            self._hashes[self._index].update(part)
            write_all(self.descriptor, part)
            self._missing[self._index] -= len(part)
            self._index += not self._missing[self._index]
            rest = rest[len(part) :]

    def finish(self) -> None:
        """Seals the files. Raises AdapterRejected with the names of those that differ from the announcement."""
        problems = [
            f"{file.name} came without its last {missing} bytes" if missing else f"{file.name} has another sha256"
            for file, missing, content in zip(self.files, self._missing, self._hashes, strict=True)
            if missing or content.hexdigest() != file.sha256
        ]
        if problems:
            raise AdapterRejected("upload", problems)
        close_for_writing(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)
