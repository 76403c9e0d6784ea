"""AdapterWatch: a folder each of whose subfolders is an adapter. Tells what to load and to unload; loads nothing.

A subfolder is taken when two looks in a row find it the same, so that one that is being written is left alone, and
let go when two looks in a row miss it, so that one that is replaced by renaming is not. What cannot be loaded is tried
again when it has changed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blora.adapters import is_valid_name

from .adapter_source import FILES

Look = Mapping[str, str]  # name of a subfolder -> what changes when its files do


def look_into(folder: Path) -> dict[str, str]:
    """The subfolders that hold an adapter's two files. Opens none of them. Raises OSError for an unreadable folder."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_valid_name(entry.name) and _is_folder(entry)]
    looks = {name: _fingerprint(folder / name) for name in names}
    return {name: fingerprint for name, fingerprint in looks.items() if fingerprint}


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a loop, or to where we may not look: the others are looked at all the same
        return False


def _fingerprint(folder: Path) -> str:
    """Empty when one of the two files is missing."""
    states = {name: _state(folder / name) for name in FILES}
    is_whole = all(states[name] for name in FILES[:2])
    return " ".join(states.values()) if is_whole else ""


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return ""
    return f"{path.name}:{state.st_ino}:{state.st_size}:{state.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class Changes:
    to_load: list[str]
    to_unload: list[str]


class AdapterWatch:
    def __init__(self) -> None:
        self._last: Look = {}
        self._taken: dict[str, str] = {}  # what was loaded, or could not be

    def compare(self, look: Look) -> Changes:
        """Takes in the next look."""
        last, self._last = self._last, dict(look)
        to_load = [name for name, found in look.items() if last.get(name) == found != self._taken.get(name)]
        to_unload = [name for name in self._taken if name not in look and name not in last]
        self._taken |= {name: look[name] for name in to_load}
        for name in to_unload:
            del self._taken[name]
        return Changes(sorted(to_load), sorted(to_unload))

    def retry(self, name: str) -> None:
        """Its load did not fail for what it is: it is told again at the next look."""
        self._taken.pop(name, None)
