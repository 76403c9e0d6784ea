"""What the file system says of a file that is read again when it changes."""

from pathlib import Path


def file_state(path: Path) -> tuple[int, int, int] | None:
    """Another one than before says that the file may have changed; None is one that cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
