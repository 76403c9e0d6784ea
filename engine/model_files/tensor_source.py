"""TensorSource: the tensors of a checkpoint by their Hugging Face names, read one at a time."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from blora.adapters.shard_cut import Range

from ..errors import EngineStartError
from .config import read_json
from .foreign_model import kind_of_model_file, kind_of_model_folder


class CheckpointError(EngineStartError, ValueError):
    """A checkpoint whose tensors do not fit the model. The message has every problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        between = " " if len(self.problems) == 1 else "\n"  # one fits into the last line of a log
        return between.join([f"{len(self.problems)} problem(s) with the weights:", *self.problems])


class TensorSource(ABC):
    @abstractmethod
    def names(self) -> Collection[str]: ...

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, read from the header alone."""

    @abstractmethod
    def get(self, name: str) -> Tensor: ...

    def get_slice(self, name: str, rows: Range, columns: Range | None) -> Tensor:
        """Some rows of a tensor, and some columns of a matrix. columns: None: all."""
        part = self.get(name)[slice(*rows)]
        return part if columns is None else part[:, slice(*columns)]


class SafetensorsSource(TensorSource):
    """The safetensors files of a Hugging Face folder, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}  # tensor name -> open file
        for file in _safetensors_files(folder):
            handle = _open(file)
            self._files |= dict.fromkeys(handle.keys(), handle)

    def names(self) -> Collection[str]:
        return self._files.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def get_slice(self, name: str, rows: Range, columns: Range | None) -> Tensor:
        """Reads only the part from the file."""
        content = self._files[name].get_slice(name)
        part: Tensor = content[slice(*rows)] if columns is None else content[slice(*rows), slice(*columns)]
        return part


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        kind = kind_of_model_file(file)
        raise CheckpointError([f"{file}: {error}" if kind is None else f"{file} is {kind}"]) from error


def _safetensors_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or the files that the index names. Other *.safetensors files are left out: some folders hold
    the weights a second time in another format."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        kind = kind_of_model_folder(folder)
        lacking = f"{folder} holds neither {single.name} nor {index.name}"
        hint = "; of a model on the hub, nothing else is downloaded, above all no pytorch_model.bin, which is a pickle"
        raise CheckpointError([f"{lacking}, but {kind}" if kind is not None else lacking + hint])
    names = _checkpoint_files(index)
    missing = [f"{folder / name} is missing" for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(missing)
    return [folder / name for name in names]


def _checkpoint_files(index: Path) -> list[str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError([f"{index} does not hold a weight_map from tensors to files"])
    return sorted(set(weight_map.values()))
