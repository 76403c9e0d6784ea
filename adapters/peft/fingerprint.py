"""Fingerprint: what the file system says of an adapter's files. It changes whenever they do. Opens none of them."""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from .folder import CONFIG_FILE, WEIGHTS_FILE, adapter_files

# The folder itself tells of files that come, go or are replaced, such as a chat template.
BESIDE = ("",)


def fingerprint(folder: Path, beside: Sequence[str] = BESIDE) -> str:
    """Empty while a file of the configuration or the weights is missing. beside: the other files that count; "" is the
    folder itself."""
    states = _states(folder)
    if not states:
        return ""
    others = ((path, _state(path)) for path in (next(iter(states)).parent / name for name in beside))
    return " ".join(_text(path, state) for path, state in [*states.items(), *others] if state is not None)


def seconds_of_quiet(folder: Path) -> float:
    """For how long no file of the configuration or the weights has been written or replaced. A file from the future
    tells nothing, and counts as an old one."""
    now = time.time()
    ages = (now - max(state.st_mtime, state.st_ctime) for state in _states(folder).values())
    return min((age for age in ages if age >= 0), default=float("inf"))


def _states(folder: Path) -> dict[Path, os.stat_result]:
    """The configuration first, then the weights; empty while one of them is missing."""
    usual = _states_of((folder / CONFIG_FILE, folder / WEIGHTS_FILE))  # found without a look around
    return usual or _states_of(adapter_files(folder))


def _states_of(files: Iterable[Path]) -> dict[Path, os.stat_result]:
    found = {file: _state(file) for file in files}
    there = {file: state for file, state in found.items() if state is not None}
    return there if len(there) == len(found) else {}


def _state(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _text(path: Path, state: os.stat_result) -> str:
    # The time of the last change of the inode tells of files that were overwritten and given their old times.
    times = f"{state.st_mtime_ns}:{state.st_ctime_ns}"
    return f"{path.name}:{state.st_dev}:{state.st_ino}:{state.st_size}:{times}"
