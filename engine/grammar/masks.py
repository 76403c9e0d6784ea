"""Masks: the tokens that answers may go on with, of all rows of a step at once. Computed without the GIL."""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
from llguidance import LLExecutor

from .compiled import Matcher
from .vocabulary import WORD

Bits = np.ndarray[Any, np.dtype[np.uint32]]
MIN_PARALLEL = 8  # with fewer rows, one thread is as fast


def masks_of(matchers: Sequence[Matcher]) -> Bits:
    """Returns [n, width / 32] uint32, a bit for each token, the lowest first. The mask of a matcher that has an error
    means nothing."""
    masks = np.zeros((len(matchers), matchers[0].vocabulary.width // WORD), dtype=np.uint32)
    bytes_of_row = masks.shape[1] * masks.itemsize
    if len(matchers) < MIN_PARALLEL:
        for row, matcher in enumerate(matchers):
            matcher.library_matcher.unsafe_compute_mask_ptr(masks.ctypes.data + row * bytes_of_row, bytes_of_row)
    else:
        places = [(matcher.library_matcher, row) for row, matcher in enumerate(matchers)]
        _executor().unsafe_compute_mask_ptr(places, masks.ctypes.data, bytes_of_row, len(matchers))
    return masks


def allowed_tokens(matcher: Matcher) -> Sequence[int]:
    """Returns the tokens of the vocabulary that can follow."""
    masks = masks_of([matcher])
    take_ends(masks, matcher.vocabulary.end)
    token_ids: list[int] = np.flatnonzero(np.unpackbits(masks[0].view(np.uint8), bitorder="little")).tolist()
    return token_ids


@cache
def _executor() -> LLExecutor:
    return LLExecutor(num_threads=len(os.sched_getaffinity(0)))


def take_ends(masks: Bits, token_id: int) -> list[bool]:
    """Returns which texts may end here, which the library tells by this token; takes it out of the masks."""
    word, bit = token_id // WORD, np.uint32(1 << token_id % WORD)
    may_end: list[bool] = ((masks[:, word] & bit) != 0).tolist()
    masks[:, word] &= ~bit
    return may_end


def allow(mask: Bits, token_ids: Iterable[int]) -> None:
    for token_id in token_ids:
        mask[token_id // WORD] |= np.uint32(1 << token_id % WORD)
