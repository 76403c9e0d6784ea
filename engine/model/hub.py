"""Finds a model: a folder, a .gguf file, or an id of the Hugging Face hub, which is downloaded. Imports no torch."""

from pathlib import Path

WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "*.txt"]
UNWANTED_FILES = ["*/*", "consolidated*"]  # other formats, and the same weights a second time


class ModelNotFound(ValueError):
    """A model that is neither here nor on the hub, or that the hub does not give."""


def resolve_model(model: str, revision: str | None) -> Path:
    """model: a folder, a .gguf file or a hub id such as "Qwen/Qwen3-0.6B". revision: of a hub id.

    Returns a folder or a .gguf file. A download shows its progress and stays in the hub's own cache.
    Raises ModelNotFound.
    """
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise ModelNotFound(f"{model!r} is a file, but not a .gguf file")
    if path.is_absolute() or model.startswith((".", "~")) or path.suffix == ".gguf" or model.count("/") > 1:
        raise ModelNotFound(f"{model!r} does not exist")  # it cannot be a hub id
    return _download(model, revision)


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            model, revision=revision, allow_patterns=WANTED_FILES, ignore_patterns=UNWANTED_FILES
        )
        return Path(folder)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        message = f"{model!r} is neither a folder, a .gguf file nor a model that the hub gives: {error}"
        raise ModelNotFound(message) from error
