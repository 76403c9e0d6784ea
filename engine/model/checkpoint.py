"""Where weights come from: a source names its tensors as Hugging Face does and reads them one at a time."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor


class CheckpointError(ValueError):
    """Weights that are not those of the model; the message lists everything that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(f"{len(problems)} problem(s) with the weights:\n" + "\n".join(problems))
        self.problems = problems


class WeightSource(ABC):
    @abstractmethod
    def names(self) -> Collection[str]: ...

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Read from the header, without the tensor."""

    @abstractmethod
    def get(self, name: str) -> Tensor: ...


class SafetensorsSource(WeightSource):
    """The safetensors files of a Hugging Face folder, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}  # tensor name -> open file
        for file in _safetensors_files(folder):
            handle: Any = safe_open(file, framework="pt")
            self._files |= dict.fromkeys(handle.keys(), handle)

    def names(self) -> Collection[str]:
        return self._files.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def open_checkpoint(path: Path) -> WeightSource:
    """path: a Hugging Face folder or a .gguf file. Raises CheckpointError when files are missing."""
    if path.suffix == ".gguf":
        from .gguf import GGUFSource

        return GGUFSource(path)
    return SafetensorsSource(path)


def _safetensors_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or the shards its index names; not every *.safetensors, for some folders hold the weights
    a second time in another format."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError([f"{folder} holds neither {single.name} nor {index.name}"])
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    missing = [f"{folder / shard} is missing" for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(missing)
    return [folder / shard for shard in shards]
