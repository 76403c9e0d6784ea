"""Options of LLM and AsyncLLM that are no part of the engine's configuration: adapters to start with, and folders."""

from collections.abc import Mapping
from pathlib import Path


def adapter_paths(adapters: Mapping[str, str | Path] | None) -> dict[str, str | Path]:
    """Returns the adapters to start with, by name. Raises ValueError if the argument is not a mapping."""
    if adapters is not None and not isinstance(adapters, Mapping):
        raise ValueError(f"adapters: {type(adapters).__name__} is not a mapping from names to paths")
    return dict(adapters or {})


def checked_folder(option: str, folder: str | Path) -> str:
    """Returns the resolved path. Raises ValueError if the folder does not exist, which is often a misspelling: every
    later load would be refused, and a watched folder would stay empty."""
    if not Path(folder).is_dir():
        raise ValueError(f"{option}: {str(folder)!r:.140} is not a folder")
    return str(Path(folder).resolve())
