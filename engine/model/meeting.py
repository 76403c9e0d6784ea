"""Meeting: where the shards of an engine find each other. It is memory that only they inherit and can name.

It goes with the last of them, however they end: nothing of it is on a disk.
"""

import os
from dataclasses import dataclass
from functools import cache
from itertools import count

from torch._C._distributed_c10d import FileStore, PrefixStore, Store

_numbers = count()


@dataclass(frozen=True, slots=True)
class Meeting:
    descriptor: int  # of the file; a child process inherits it under the same number
    name: str  # of this meeting in the file

    def open(self) -> Store:
        """Returns the store that all shards of the engine reach."""
        return PrefixStore(self.name, FileStore(f"/proc/self/fd/{self.descriptor}"))


def create_meeting() -> Meeting:
    return Meeting(_file(), f"{os.getpid()}-{next(_numbers)}")


@cache
def _file() -> int:
    """Returns the descriptor of the file of all meetings of this process. It is never closed: torch's store opens its
    file by name again and again, also when it is destroyed, and a group, an error or a thread of torch may hold a store
    for longer than the engine lives. By then the number of a closed descriptor would name some other file."""
    return os.memfd_create("blora-shards", os.MFD_CLOEXEC)
