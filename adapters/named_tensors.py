"""NamedTensors: the tensors of a PEFT checkpoint, each taken by the module it lands on; what does not fit is noted.

Knows how PEFT names a module's tensors, and no module's meaning. numpy only.
"""

import numpy as np

from .base_tensors import BaseTensors
from .lora_module import Array

PREFIX = "base_model.model."
MAX_VALUE = 65504.0  # of a weight: the largest float16, so that no model's type turns one into infinity


class NamedTensors:
    def __init__(self, tensors: dict[str, Array], base: BaseTensors | None) -> None:
        self._all = tensors
        self._left = dict(tensors)
        self._base = base
        self.ignored: set[str] = set()  # tensors that are the base model's own
        self.problems: list[str] = []

    @property
    def left(self) -> list[str]:
        """The names of those that nobody has taken."""
        return [*self._left]

    def find(self, module: str, part: str) -> Array | None:
        """A tensor, taken or not."""
        return self._all.get(f"{PREFIX}{module}.{part}")

    def take(self, module: str, part: str) -> Array | None:
        return self._left.pop(f"{PREFIX}{module}.{part}", None)

    def ignore(self, module: str, part: str) -> None:
        """Takes a tensor, if it is there, that says nothing new."""
        if self.take(module, part) is not None:
            self.ignored.add(f"{PREFIX}{module}.{part}")

    def check(self, module: str, part: str, tensor: Array | None, shape: tuple[int, ...]) -> Array | None:
        """The tensor, or None and a problem."""
        short = f"{module}.{part.removesuffix('.weight')}"
        if tensor is None:
            self.problems.append(f"tensor {PREFIX}{module}.{part} is missing")
        elif tensor.shape != shape:
            self.problems.append(f"{short} has shape {list(tensor.shape)}; model and rank ask for {list(shape)}")
        elif not (np.abs(tensor) <= MAX_VALUE).all():
            self.problems.append(f"{short} holds values that are not finite or beyond {MAX_VALUE:g}")
        else:
            return tensor
        return None

    def base(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """The base model's tensor of this name, or None and a problem."""
        problem = "is not at hand"
        if self._base is not None:
            try:
                tensor = self._base.get(name)
                if tensor.shape == shape:
                    return tensor
                problem = f"has shape {list(tensor.shape)}, not {list(shape)}"
            except OSError as error:
                problem = f"cannot be read: {error}"
        self.problems.append(f"{name} of the base model, which this adapter builds on, {problem}")
        return None
