"""The file where the shards of an engine find each other: memory that they inherit, and nobody else can name.

It is gone with the last of them, however they end: there is nothing on a disk.
"""

import os
from pathlib import Path


def create_meeting() -> int:
    """Its descriptor, which the caller closes and hands on to child processes."""
    return os.memfd_create("blora-shards", os.MFD_CLOEXEC)


def path_of(descriptor: int) -> Path:
    """A name to open it by, of this process."""
    return Path(f"/proc/self/fd/{descriptor}")
