"""Shrinking: leaves out of a failing sequence all that it fails without (delta debugging)."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def shortest(items: Sequence[Item], fails: Callable[[Sequence[Item]], bool]) -> list[Item]:
    """A sequence that still fails, and no longer does without any one of its items. items: has to fail."""
    kept, size = list(items), max(len(items) // 2, 1)
    while size:
        at, has_shrunk = 0, False
        while at < len(kept):
            fewer = kept[:at] + kept[at + size :]
            if fails(fewer):
                kept, has_shrunk = fewer, True
            else:
                at += size
        if not (has_shrunk and size == 1):
            size //= 2
    return kept
