"""BaseTensors: the base model's own tensors, for what an adapter only says in relation to them. An interface."""

from typing import Protocol

import numpy as np


class BaseTensors(Protocol):
    def get(self, name: str) -> np.ndarray:
        """The tensor of this name, as Hugging Face names it, in float32. Raises OSError where it cannot be read."""
