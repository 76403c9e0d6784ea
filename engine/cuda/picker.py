"""CudaPicker: the passes over whole rows of logits on a GPU; what is found comes to the host in one copy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..sampler import Best, TorchPicker


class CudaPicker(TorchPicker):
    def best(self, logits: Tensor, vocab_sizes: Sequence[int] | None = None) -> Best:
        if vocab_sizes is not None:
            sizes = torch.tensor(vocab_sizes, device=logits.device)
            is_own = torch.arange(logits.shape[1], device=logits.device) < sizes[:, None]
            logits = torch.where(is_own, logits, -torch.inf)
            is_finite = (logits.isfinite() | ~is_own).all(dim=1)
        else:
            is_finite = logits.isfinite().all(dim=1)
        token_ids, finite = torch.stack((logits.argmax(dim=1), is_finite.long())).tolist()
        return Best(token_ids, [bool(value) for value in finite])
