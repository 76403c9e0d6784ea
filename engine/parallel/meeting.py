"""Meeting: the file where the shards of an engine find each other. It is memory that only they inherit and can name.

It goes with the last of them, however they end: nothing of it is on a disk.
"""

import os
from pathlib import Path


def create_meeting() -> int:
    """Returns the file's descriptor, which the caller closes and passes on to child processes."""
    return os.memfd_create("blora-shards", os.MFD_CLOEXEC)


def path_of(descriptor: int) -> Path:
    """Returns a path by which this process can open the file."""
    return Path(f"/proc/self/fd/{descriptor}")
