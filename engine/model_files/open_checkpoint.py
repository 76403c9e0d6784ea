"""Opens the tensors of a model, in a Hugging Face folder or a .gguf file."""

from pathlib import Path

from .tensor_source import SafetensorsSource, TensorSource


def open_checkpoint(path: Path) -> TensorSource:
    """path: a Hugging Face folder or a .gguf file. Raises CheckpointError if files are missing."""
    if path.suffix == ".gguf":
        from .gguf import GGUFSource

        return GGUFSource(path)
    return SafetensorsSource(path)
