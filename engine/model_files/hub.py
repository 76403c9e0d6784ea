"""Finds a model: a folder, a .gguf file, or an id of the Hugging Face hub, which is downloaded. Imports no torch."""

from pathlib import Path

from ..errors import EngineStartError

WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "*.txt"]
UNWANTED_FILES = ["*/*", "consolidated*"]  # other formats, and copies of the same weights


class ModelNotFound(EngineStartError, ValueError):
    """A name that belongs to no model: no folder or file, no repository that the hub gives, or one without a model."""


def resolve_model(model: str, revision: str | None) -> Path:
    """Returns the folder or the .gguf file of a model. A download shows its progress and stays in the hub's own cache.

    model: a folder, a .gguf file or a hub id such as "Qwen/Qwen3-0.6B".
    revision: of a hub id; None: the newest.
    Raises ModelNotFound.
    """
    if not model:
        raise ModelNotFound("model: the name is empty")
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(model, path)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_file():
        raise ModelNotFound(f"{model!r} is a file, but not a .gguf file")
    if path.is_absolute() or model.startswith((".", "~")) or path.suffix == ".gguf" or model.count("/") > 1:
        raise ModelNotFound(f"{model!r} does not exist")  # a hub id never looks like this
    return _checked(model, _download(model, revision))


def _checked(model: str, folder: Path) -> Path:
    """Returns the folder. Raises ModelNotFound for a folder without a model, before a later error confuses the user."""
    if (folder / "config.json").is_file():
        return folder
    if (folder / "adapter_config.json").is_file():
        raise ModelNotFound(f"{model!r} is an adapter, not a model: load it beside the model that it was trained on")
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
