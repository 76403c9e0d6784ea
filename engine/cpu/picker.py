"""CpuPicker: the passes over whole rows of logits, on the native kernels."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..grammar.masks import Bits
from ..kernels.library import Kernels
from ..step.sampler import Best


class CpuPicker:
    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def best(
        self,
        logits: Tensor,
        vocab_sizes: Sequence[int] | None = None,
        masks: Sequence[Bits | None] | None = None,
    ) -> Best:
        token_ids, is_finite = self._kernels.scan(logits, vocab_sizes)
        if masks is not None:
            self._kernels.mask(logits, masks, token_ids, vocab_sizes)
        sizes = vocab_sizes or [logits.shape[1]] * len(logits)  # a token that is the size: the mask leaves none
        finite = is_finite.tolist()
        best = [
            token_id if token_id < size and (finite[row] or float(logits[row, token_id]) != -math.inf) else None
            for row, (token_id, size) in enumerate(zip(token_ids.tolist(), sizes, strict=True))
        ]
        return Best(best, finite)

    def draw(self, logits: Tensor, temperature: float, key: int) -> int:
        return self._kernels.draw(logits, temperature, key)
