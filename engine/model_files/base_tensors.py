"""BaseTensorFiles: the base model's tensors for whoever reads adapters; opened when first asked, which most never do.

Torch is imported then, because it reads bfloat16 and GGUF; the adapter loader goes without it until an adapter is
defined by the base model's weights.
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
        """Float32, whatever the file holds. Raises OSError where it cannot be read."""
        try:
            tensor: np.ndarray = self._source.get(name).float().numpy()
        except (ValueError, KeyError) as error:
            raise OSError(str(error)) from error
        return tensor
