"""BaseTensorFiles: the base model's tensors, for the code that reads adapters. Files are opened at the first request.

Few adapters need the base model's weights. The first request imports torch, which reads bfloat16 and GGUF; until then
the adapter loader runs without it.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .tensor_source import TensorSource


class BaseTensorFiles:
    def __init__(self, model: Path) -> None:
        """model: a Hugging Face folder or a .gguf file."""
        self._model = model

    @cached_property
    def _source(self) -> "TensorSource":
        from .open_checkpoint import open_checkpoint

        return open_checkpoint(self._model)

    def get(self, name: str) -> np.ndarray:
        """Returns a tensor in float32, whatever the file holds. Raises OSError for a tensor that cannot be read."""
        try:
            tensor: np.ndarray = self._source.get(name).float().numpy()
        except (ValueError, KeyError) as error:
            raise OSError(str(error)) from error
        return tensor
