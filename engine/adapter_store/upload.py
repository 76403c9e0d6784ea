"""IncomingAdapter: an adapter's files that come as bytes. They go into memory that has no name in any file system.

Nothing is taken before the sizes are allowed, and nothing is handed on whose digests are not those announced.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from blora.adapters import AdapterRejected

from ..errors import InvalidRequest
from ..ipc.sealed_memory import close_for_writing, create_memory, write_all
from .source import FILES

DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """What a client announces of a file."""

    name: str  # such as "adapter_config.json"
    num_bytes: int
    sha256: str  # in hexadecimal


def check_files(files: Sequence[UploadedFile], max_bytes: int) -> None:
    """Raises InvalidRequest for what is no list of an adapter's files, AdapterRejected when they are too large."""
    names = [file.name for file in files]
    for name in names:
        if name not in FILES:
            raise InvalidRequest("files", f"{name!r:.140} is none of {', '.join(FILES)}")
    if len(set(names)) < len(names):
        raise InvalidRequest("files", "a name stands there twice")
    for file in files:
        if not DIGEST_PATTERN.fullmatch(file.sha256) or file.num_bytes < 1:
            raise InvalidRequest("files", f"{file.name} comes without its size, or without its sha256 in hexadecimal")
    num_bytes = sum(file.num_bytes for file in files)
    if num_bytes > max_bytes:
        raise AdapterRejected("upload", [f"{num_bytes} bytes are announced, at most {max_bytes} are taken"])


class IncomingAdapter:
    """Close it. `descriptor` is of the files' bytes, one after another, which are sealed by `finish`."""

    def __init__(self, files: Sequence[UploadedFile], max_bytes: int) -> None:
        check_files(files, max_bytes)
        self.files = tuple(files)
        self.descriptor = create_memory()
        self._missing = [file.num_bytes for file in files]  # bytes of each
        self._hashes = [hashlib.sha256() for _ in files]
        self._index = 0  # of the file that comes

    def add(self, chunk: bytes) -> None:
        """The next bytes, of any number of files. Raises AdapterRejected for more than were announced."""
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
        """Raises AdapterRejected naming the files that are not what was announced."""
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
