"""Source: where an adapter comes from, a folder or a hub id. A hub id is downloaded into the hub's own cache.

Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blora.adapters import AdapterRejected
from blora.adapters.peft.folder import (
    CONFIG_FILE,
    INDEX_FILE,
    SHARDS_GLOB,
    WEIGHTS_FILE,
    adapter_files,
    is_adapter_file,
)
from blora.adapters.peft.signatures import SIGNATURE_FILE
from blora.adapters.peft.text import MAX_FILE_BYTES

HUB_HINT = "; other formats (adapter_model.bin is a pickle) and the files of subfolders are not downloaded"
FILE_PATTERNS = [CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, SHARDS_GLOB, SIGNATURE_FILE, *MAX_FILE_BYTES]


@dataclass(frozen=True, slots=True)
class Source:
    """The place that an adapter was loaded from and can be read from again."""

    path: str  # as the caller named it
    folder: str  # the folder that was read: for a hub id, the folder of the download
    roots: Sequence[str] | None = None  # folders, one of which has to hold the adapter's; None allows any
    fingerprint: str = ""  # of the files that were read

    def changed(self, digest: str, problems: Sequence[str]) -> AdapterRejected:
        """The error when reading again does not bring the same adapter. digest: of the loaded adapter. problems: what
        the second read found."""
        return AdapterRejected(self.path, [f"it is no longer what was loaded, whose digest is {digest}", *problems])


def resolve_adapter(path: str) -> Path:
    """The folder of an adapter: a folder is itself, a hub id is downloaded. Raises AdapterRejected for any other
    path."""
    folder = Path(path)
    try:
        if not is_hub_id(path) or folder.exists():
            return folder
    except (OSError, ValueError) as error:
        raise AdapterRejected(path[:80], ["the path cannot be used"]) from error
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        downloaded = Path(snapshot_download(path, allow_patterns=FILE_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterRejected(path, [f"is neither a folder nor an adapter on the hub: {error}"]) from error
    missing = [file.name for file in adapter_files(downloaded) if not file.exists()]
    if missing:
        raise AdapterRejected(path, [f"the repository has no {', '.join(missing[:3])}{HUB_HINT}"])
    return downloaded


def is_file_of_adapter(name: str) -> bool:
    """Whether a file of this name is read: configuration, weights, text or signatures."""
    return is_adapter_file(name) or name in MAX_FILE_BYTES or name == SIGNATURE_FILE


def is_hub_id(path: str) -> bool:
    """Whether a path has the form of a hub id. A folder may have a path of this form, too."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))
