"""Opens a model's tensors, whichever kind of files hold them."""

from pathlib import Path

from .weight_source import SafetensorsSource, WeightSource


def open_checkpoint(path: Path) -> WeightSource:
    """path: a Hugging Face folder or a .gguf file. Raises CheckpointError when files are missing."""
    if path.suffix == ".gguf":
        from .gguf import GGUFSource

        return GGUFSource(path)
    return SafetensorsSource(path)
