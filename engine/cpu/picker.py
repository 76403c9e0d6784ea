"""CpuPicker: the passes over whole rows of logits, on the native kernels."""

from collections.abc import Sequence

from torch import Tensor

from ..kernels.library import Kernels
from ..step.sampler import Best


class CpuPicker:
    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def best(self, logits: Tensor, vocab_sizes: Sequence[int] | None = None) -> Best:
        token_ids, is_finite = self._kernels.scan(logits, vocab_sizes)
        return Best(token_ids.tolist(), is_finite.tolist())

    def draw(self, logits: Tensor, temperature: float, key: int) -> int:
        return self._kernels.draw(logits, temperature, key)
