"""Shelf: what is kept by its key, up to a weight in all; what was not asked for the longest goes first.

Threads may share it: every change is one operation of a dict. A race costs a thing that has to be made again.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Shelf(Generic[Thing]):
    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[Hashable, tuple[Thing, int]] = {}

    def get(self, key: Hashable) -> Thing | None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._entries[key] = entry
        return entry[0]

    def put(self, key: Hashable, thing: Thing, weight: int) -> None:
        """Looks at all that is kept, so its weights allow some thousand things at most."""
        self._entries[key] = (thing, weight)
        weights = [(key, weight) for key, (_, weight) in list(self._entries.items())]
        total = sum(weight for _, weight in weights)
        for key, weight in weights[:-1]:
            if total <= self._most:
                return
            self._entries.pop(key, None)
            total -= weight

    def __len__(self) -> int:
        return len(self._entries)
