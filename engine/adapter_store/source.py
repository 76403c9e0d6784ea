"""Where an adapter comes from: a folder, or a hub id that is downloaded into the hub's own cache. No torch."""

from pathlib import Path

from blora.adapters import AdapterRejected
from blora.adapters.peft.text import MAX_FILE_BYTES

FILES = ["adapter_config.json", "adapter_model.safetensors", *MAX_FILE_BYTES]


def resolve_adapter(path: str) -> Path:
    """A folder as it is; what looks like a hub id is downloaded. Raises AdapterRejected when it is neither."""
    folder = Path(path)
    try:
        if not is_hub_id(path) or folder.exists():
            return folder
    except (OSError, ValueError) as error:
        raise AdapterRejected(path[:80], ["is not a usable path"]) from error
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterRejected(path, [f"is neither a folder nor to be had from the hub: {error}"]) from error


def is_hub_id(path: str) -> bool:
    """Whether it looks like one; a folder may have such a name, too."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))
