"""UploadSpace: the place on disk for the files of uploaded adapters, which are read again when they have left memory.

Owns one folder of the system's temporary files, and how much may lie there. A server that is killed cannot remove its
folder: the next one does. The lock of a folder tells, because the system takes it from a process that ends.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import LimitReached

PREFIX, LOCK = "blora-uploads-", ".lock"
MOST_UPLOADS = 256  # of the largest size, together: more adapters than a client should bring by itself


class UploadFolder:
    """The files of one upload. on_cleanup: called once, after they have gone."""

    def __init__(self, name: str, on_cleanup: Callable[[], None]) -> None:
        self.name = name
        self._on_cleanup = on_cleanup
        self._is_there = True

    def cleanup(self) -> None:
        """Removes the files. Idempotent."""
        if self._is_there:
            self._is_there = False
            shutil.rmtree(self.name, ignore_errors=True)
            self._on_cleanup()


class UploadSpace:
    def __init__(self, upload_bytes: int) -> None:
        """Removes what dead servers have left. upload_bytes: of the largest upload."""
        self._most_bytes = MOST_UPLOADS * upload_bytes
        self._folder: Path | None = None  # while there are uploads
        self._lock: int | None = None
        self._sizes: list[int] = []  # of all uploads that are there
        remove_folders_of_dead_servers()

    def check_room(self, num_bytes: int) -> None:
        """Raises LimitReached for an upload that would be too much beside the others."""
        if sum(self._sizes) + num_bytes > self._most_bytes:
            told = f"uploaded adapters take {sum(self._sizes)} of {self._most_bytes} bytes"
            raise LimitReached(f"{told}: unload some, or load them from a folder")

    def take(self, num_bytes: int) -> UploadFolder:
        """Returns an empty folder. Raises LimitReached."""
        self.check_room(num_bytes)
        name = tempfile.mkdtemp(prefix="adapter-", dir=self._folder or self._make_folder())
        self._sizes.append(num_bytes)
        return UploadFolder(name, lambda: self._give_back(num_bytes))

    def _give_back(self, num_bytes: int) -> None:
        self._sizes.remove(num_bytes)
        if not self._sizes:
            self.close()

    def _make_folder(self) -> Path:
        # Under its name it is locked from the first moment on.
        unlocked = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
        self._lock = os.open(unlocked / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._folder = unlocked.rename(unlocked.with_name(unlocked.name.removeprefix(".")))
        return self._folder

    def close(self) -> None:
        """Removes all files."""
        if self._folder is not None and self._lock is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)
            self._folder = self._lock = None


def remove_folders_of_dead_servers() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, one that is in use, or one that another server is just removing
            _remove_if_dead(folder)


def _remove_if_dead(folder: Path) -> None:
    """Raises OSError."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)
