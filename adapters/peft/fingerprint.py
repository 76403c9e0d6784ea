"""Fingerprint: what the file system says of an adapter's files. It changes whenever they do. Opens none of them."""

from collections.abc import Sequence
from pathlib import Path

from .folder import CONFIG_FILE, WEIGHTS_FILE, adapter_files

# The folder itself tells of files that come, go or are replaced, such as a chat template.
BESIDE = ("",)


def fingerprint(folder: Path, beside: Sequence[str] = BESIDE) -> str:
    """Empty while a file of the configuration or the weights is missing. beside: the other files that count; "" is the
    folder itself."""
    files = [folder / CONFIG_FILE, folder / WEIGHTS_FILE]  # the usual ones, which are found without a look around
    states = [_state(file) for file in files]
    if not all(states):
        files = adapter_files(folder)
        states = [_state(file) for file in files]
    if not states or not all(states):
        return ""
    return " ".join([*states, *(_state(files[0].parent / name) for name in beside)])


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except (OSError, ValueError):
        return ""
    # The time of the last change of the inode tells of files that were overwritten and given their old times.
    times = f"{state.st_mtime_ns}:{state.st_ctime_ns}"
    return f"{path.name}:{state.st_dev}:{state.st_ino}:{state.st_size}:{times}"
