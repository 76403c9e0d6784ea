"""Ordered: a list that stays in the order of a key. Owns the order, nothing else."""

import bisect
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Ordered(Generic[Item]):
    """Finds places by bisection. Keys have to be distinct, and an item's key must not change while it is listed."""

    def __init__(self, key: Callable[[Item], Any]) -> None:
        self._key = key
        self._items: list[Item] = []

    def add(self, item: Item) -> None:
        bisect.insort(self._items, item, key=self._key)

    def remove(self, item: Item) -> None:
        """Raises RuntimeError when the item is not listed, or its key has changed."""
        index = bisect.bisect_left(self._items, self._key(item), key=self._key)
        if index == len(self._items) or self._items[index] is not item:
            raise RuntimeError(f"{item!r} is not listed at the place of its key")
        del self._items[index]

    @property
    def first(self) -> Item:
        return self._items[0]

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def check_integrity(self) -> None:
        keys = [self._key(item) for item in self._items]
        if any(one >= other for one, other in zip(keys, keys[1:], strict=False)):
            raise RuntimeError(f"keys are not in order: {keys}")
