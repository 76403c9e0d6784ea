"""NamedTensors: the tensors of a PEFT checkpoint, each taken by the module on which it lands. Notes every misfit.

Knows PEFT's names for a module's tensors, and no module's meaning. numpy only.
"""

import numpy as np

from ..lora_module import Array, BaseTensors
from .misfits import Misfits, Misshapen
from .trained_names import PREFIX

MAX_VALUE = 65504.0  # largest allowed weight: float16's largest, so that no model's dtype turns it into infinity


class NamedTensors:
    def __init__(self, tensors: dict[str, Array], base: BaseTensors | None) -> None:
        self._all = tensors
        self._left = dict(tensors)
        self._base = base
        self.ignored: set[str] = set()  # names of tensors that are the base model's own
        self.refused: set[str] = set()  # names of tensors that do not fit
        self.misfits = Misfits()
        self.problems: list[str] = []  # others than misfits

    def refuse_left(self) -> None:
        """Refuses the tensors that no module has taken."""
        self.refused.update(self._left)
        self.misfits.misplaced += self._left

    def find(self, module: str, part: str) -> Array | None:
        """Returns a tensor, taken or not."""
        return self._all.get(f"{PREFIX}{module}.{part}")

    def take(self, module: str, part: str) -> Array | None:
        return self._left.pop(f"{PREFIX}{module}.{part}", None)

    def ignore(self, module: str, part: str) -> None:
        """Takes a tensor, if it is there, whose content is known from elsewhere."""
        if self.take(module, part) is not None:
            self.ignored.add(f"{PREFIX}{module}.{part}")

    def check(self, module: str, part: str, tensor: Array | None, shape: tuple[int, ...]) -> Array | None:
        """Returns the tensor if it fits. Otherwise notes the misfit and returns None."""
        short = f"{module}.{part.removesuffix('.weight')}"
        if tensor is None:
            self.misfits.missing.append(f"{PREFIX}{module}.{part}")
        elif tensor.shape != shape:
            self.misfits.misshapen.append(Misshapen(short, tensor.shape, shape))
        elif not (np.abs(tensor) <= MAX_VALUE).all():
            self.misfits.unusable.append(f"{short} holds values that are not finite or beyond {MAX_VALUE:g}")
        else:
            return tensor
        if tensor is not None:
            self.refused.add(f"{PREFIX}{module}.{part}")
        return None

    def base(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """Returns the base model's tensor of this name, or notes a problem and returns None."""
        tensor, problem = self._find_base(name, shape)
        if tensor is None:
            self.problems.append(f"the base model's {name}, on which this adapter depends, {problem}")
        return tensor

    def base_if_known(self, name: str, shape: tuple[int, ...]) -> Array | None:
        return self._find_base(name, shape)[0]

    def _find_base(self, name: str, shape: tuple[int, ...]) -> tuple[Array | None, str]:
        """Returns the base model's tensor, or None and the reason."""
        if self._base is None:
            return None, "is not available"
        try:
            tensor = self._base.get(name)
        except OSError as error:
            return None, f"cannot be read: {error}"
        return (tensor, "") if tensor.shape == shape else (None, f"has shape {list(tensor.shape)}, not {list(shape)}")
