"""Shards as threads of one process: they run models of every size and shape in milliseconds, without processes and
gloo."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from blora.engine.model.shard_group import ShardGroup

Result = TypeVar("Result")
TIMEOUT = 60.0  # seconds that shards wait for a failed one


class ThreadGroup(ShardGroup):
    def __init__(self, index: int, size: int, meeting: Barrier, table: list[Tensor]) -> None:
        """table: each shard puts its messages to the others here."""
        self.index, self.size = index, size
        self.num_collectives = 0
        self._meeting, self._table = meeting, table

    def all_reduce(self, x: Tensor) -> None:
        x.copy_(sum(self._exchange(x), torch.zeros_like(x)))

    def gather(self, x: Tensor) -> list[Tensor]:
        parts = self._exchange(x)
        return parts if self.is_first else []

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self.num_collectives += 1
        self._table[self.index] = x.clone()
        self._meeting.wait(TIMEOUT)
        parts = list(self._table)
        self._meeting.wait(TIMEOUT)
        assert len({part.shape for part in parts}) == 1, "shards meet with tensors of one shape"
        return parts


def on_shards(size: int, work: Callable[[ShardGroup], Result]) -> Sequence[Result]:
    """Runs `work` in each shard; returns the results."""
    meeting, table = Barrier(size), [torch.empty(0)] * size
    groups = [ThreadGroup(index, size, meeting, table) for index in range(size)]

    def run(group: ThreadGroup) -> Result:
        try:
            return work(group)
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, groups))
