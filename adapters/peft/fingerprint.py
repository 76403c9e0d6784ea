"""Fingerprint: what the file system says of an adapter's files. It changes whenever they do. Opens no file."""

from collections.abc import Sequence
from pathlib import Path

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# The folder itself tells of files that come, go or are replaced, such as a chat template.
STATED = ("", CONFIG_FILE, WEIGHTS_FILE)


def fingerprint(folder: Path, names: Sequence[str] = STATED) -> str:
    """Empty while one of PEFT's two files is missing. names: the files that count; "" is the folder itself."""
    states = {name: _state(folder / name) for name in names}
    is_whole = states[CONFIG_FILE] and states[WEIGHTS_FILE]
    return " ".join(states.values()) if is_whole else ""


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except (OSError, ValueError):
        return ""
    # The time of the last change of the inode tells of files that were overwritten and given their old times.
    times = f"{state.st_mtime_ns}:{state.st_ctime_ns}"
    return f"{path.name}:{state.st_dev}:{state.st_ino}:{state.st_size}:{times}"
