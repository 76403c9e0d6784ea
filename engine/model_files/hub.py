"""Finds a model: a folder, a .gguf file, or an id of the Hugging Face hub, which is downloaded. Imports no torch."""

from pathlib import Path

from ..errors import EngineStartError

WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "*.txt"]
UNWANTED_FILES = ["*/*", "consolidated*"]  # other formats, and the same weights a second time


class ModelNotFound(EngineStartError, ValueError):
    """A model that is neither here nor on the hub, that the hub does not give, or that is no model."""


def resolve_model(model: str, revision: str | None) -> Path:
    """model: a folder, a .gguf file or a hub id such as "Qwen/Qwen3-0.6B". revision: of a hub id.

    Returns a folder or a .gguf file. A download shows its progress and stays in the hub's own cache.
    Raises ModelNotFound.
    """
    if not model:
        raise ModelNotFound("the name of the model is empty")
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(model, path)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_file():
        raise ModelNotFound(f"{model!r} is a file, but not a .gguf file")
    if path.is_absolute() or model.startswith((".", "~")) or path.suffix == ".gguf" or model.count("/") > 1:
        raise ModelNotFound(f"{model!r} does not exist")  # it cannot be a hub id
    return _checked(model, _download(model, revision))


def _checked(model: str, folder: Path) -> Path:
    """Before anything else is read: what fails first in a folder that is no model tells nobody what is wrong."""
    if (folder / "config.json").is_file():
        return folder
    if (folder / "adapter_config.json").is_file():
        raise ModelNotFound(f"{model!r} is an adapter, not a model: it is loaded beside the model it was trained on")
    raise ModelNotFound(f"{model!r} holds no config.json: it is not a model in Hugging Face's format")


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
