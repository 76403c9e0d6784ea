"""Sealed memory: bytes that one process wrote and no process can change any more, passed on as a file descriptor."""

import fcntl
import mmap
import os
import resource
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def raise_descriptor_limit() -> None:
    """Raises this process's limit of open files to the hard limit. Each loaded adapter is an open descriptor, and the
    usual limit is about a thousand."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def create_memory() -> int:
    """Creates memory to be written and then sealed; returns its descriptor, which the caller closes."""
    return os.memfd_create("blora-adapter", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def write_all(descriptor: int, content: memoryview) -> None:
    """Appends bytes to a file or to memory."""
    while content:
        content = content[os.write(descriptor, content) :]


def close_for_writing(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)


def seal(content: Bytes) -> int:
    """Copies an array into sealed memory; returns its descriptor, which the caller closes."""
    descriptor = create_memory()
    write_all(descriptor, content.data.cast("B"))
    close_for_writing(descriptor)
    return descriptor


def map_sealed(descriptor: int, num_bytes: int) -> Bytes:
    """Maps sealed memory, [num_bytes] uint8, and closes the descriptor. Raises ValueError if the descriptor is no
    sealed memory of this size."""
    try:
        if _seals(descriptor) & SEALS != SEALS or os.fstat(descriptor).st_size != num_bytes:
            raise ValueError(f"the descriptor is not {num_bytes} bytes of sealed memory")
        # Private and writable, because torch warns of read-only memory. Nothing writes to it, so no page is copied.
        mapping = mmap.mmap(descriptor, num_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(descriptor)
    return np.frombuffer(mapping, dtype=np.uint8)


def _seals(descriptor: int) -> int:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return 0  # a file or a pipe, which has no seals
