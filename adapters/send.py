"""Send: how integers that a step is described by get to where it is computed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .lora_module import Array

Send = Callable[..., Sequence[Tensor]]  # arrays of the host, which may change at once, to tensors of the same dtypes


def on_host(*parts: Array) -> list[Tensor]:
    """For the CPU: the tensors are the arrays."""
    return [torch.from_numpy(part) for part in parts]
