"""Ranks as threads of one process: the model of every size and shape in milliseconds, without processes and gloo."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from blora.engine.model.rank_group import RankGroup

Result = TypeVar("Result")
TIMEOUT = 60.0  # seconds that ranks wait for one that has failed


class ThreadGroup(RankGroup):
    def __init__(self, rank: int, size: int, meeting: Barrier, table: list[Tensor]) -> None:
        """table: where each rank puts what it tells the others."""
        self.rank, self.size = rank, size
        self.num_collectives = 0
        self._meeting, self._table = meeting, table

    def all_reduce(self, x: Tensor) -> None:
        x.copy_(sum(self._exchange(x), torch.zeros_like(x)))

    def gather(self, x: Tensor) -> list[Tensor]:
        parts = self._exchange(x)
        return parts if self.is_first else []

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self.num_collectives += 1
        self._table[self.rank] = x.clone()
        self._meeting.wait(TIMEOUT)
        parts = list(self._table)
        self._meeting.wait(TIMEOUT)
        assert len({part.shape for part in parts}) == 1, "ranks meet with tensors of one shape"
        return parts


def on_ranks(size: int, work: Callable[[RankGroup], Result]) -> Sequence[Result]:
    """What `work` returns in each rank."""
    meeting, table = Barrier(size), [torch.empty(0)] * size
    groups = [ThreadGroup(rank, size, meeting, table) for rank in range(size)]

    def run(group: ThreadGroup) -> Result:
        try:
            return work(group)
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, groups))
