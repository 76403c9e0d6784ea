"""The pickers of a GPU. They pass over whole rows of logits on the GPU; one copy brings the result to the host."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blora.adapters.lora import Send

from ..grammar.masks import Bits
from ..step.sampler import Best, Draw, TorchPicker, apply_masks


class CudaPicker(TorchPicker):
    def best(
        self,
        logits: Tensor,
        vocab_sizes: Sequence[int] | None = None,
        masks: Sequence[Bits | None] | None = None,
    ) -> Best:
        is_finite = logits.isfinite()
        apply_masks(logits, masks)
        if vocab_sizes is not None:
            is_own = _is_own(logits, vocab_sizes)
            logits, is_finite = logits.masked_fill(~is_own, -torch.inf), is_finite | ~is_own
        best, best_ids = logits.max(dim=1)
        is_left = best > -torch.inf
        token_ids, left, finite = torch.stack((best_ids, is_left.long(), is_finite.all(dim=1).long())).tolist()
        found = zip(token_ids, left, strict=True)
        return Best([token_id if is_left else None for token_id, is_left in found], [bool(value) for value in finite])


class CudaUnseededPicker:
    """Draws for rows without a seed by FlashInfer's rejection sampling, which needs no sort."""

    def __init__(self, sampling: Any, send: Send) -> None:
        """sampling: the module flashinfer.sampling."""
        self._sampling = sampling
        self._send = send

    def draw_all(self, logits: Tensor, draws: Sequence[Draw], vocab_sizes: Sequence[int] | None) -> Sequence[int]:
        if vocab_sizes is not None:
            logits = logits.masked_fill(~_is_own(logits, vocab_sizes), -torch.inf)
        vocab_size = logits.shape[1]
        params = [draw.params for draw in draws]
        temperatures, top_ps, min_ps = (
            np.array([getattr(own, name) for own in params], dtype=np.float32)
            for name in ("temperature", "top_p", "min_p")
        )
        top_ks = np.array([own.top_k if 0 < own.top_k < vocab_size else vocab_size for own in params], dtype=np.int32)
        # FlashInfer's own generator would begin at the same place in every process.
        keys = np.array([draw.key for draw in draws], dtype=np.uint64).view(np.int64)
        temperature, top_p, min_p, top_k, seed, offset = self._send(
            temperatures, top_ps, min_ps, top_ks, keys, np.zeros_like(keys)
        )
        bits = {"seed": seed, "offset": offset}
        # Each filter runs if any row uses it, in the order of the exact sampler: later filters see only top-k's tokens.
        probs = self._sampling.softmax(logits, temperature=temperature)
        if (top_ks < vocab_size).any():
            probs = self._sampling.top_k_renorm_probs(probs, top_k)
        if (min_ps > 0).any():
            if (top_ps < 1).any():
                probs = self._sampling.top_p_renorm_probs(probs, top_p)
            tokens = self._sampling.min_p_sampling_from_probs(probs, min_p, **bits)
        elif (top_ps < 1).any():
            tokens = self._sampling.top_p_sampling_from_probs(probs, top_p, **bits)
        else:
            tokens = self._sampling.sampling_from_probs(probs, **bits)
        token_ids: list[int] = tokens.tolist()
        return token_ids


def _is_own(logits: Tensor, vocab_sizes: Sequence[int]) -> Tensor:
    """Whether each logit belongs to its row's own vocabulary: [num_rows, widest vocab_size] bool."""
    sizes = torch.tensor(vocab_sizes, device=logits.device)
    return torch.arange(logits.shape[1], device=logits.device) < sizes[:, None]
