"""RankGroup: the ranks that share a model, and what they tell each other while they compute. Knows no process.

It is made of a store that all ranks reach, and is no default group of torch.distributed, of which a process has one:
several engines may be in a process, or other users of it. Collectives run in the order of the calls, which has to be
the same in every rank.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch._C._distributed_c10d import FileStore, GatherOptions

CONNECT_TIMEOUT = timedelta(seconds=120)
TIMEOUT = timedelta(minutes=10)  # of a collective of gloo, where one that dies is known of at once
# Of one of NCCL, where the kernels of the others wait for one that dies: then the process is ended. Longer than a rank
# takes in its first step for what is only made then.
NCCL_TIMEOUT = timedelta(minutes=2)


class RankGroup:
    """Of one rank, which has nobody to talk to."""

    rank = 0
    size = 1
    num_collectives = 0  # begun so far

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def all_reduce(self, x: Tensor) -> None:
        """Puts the sum over the ranks into x, the same bits in each."""

    def gather(self, x: Tensor) -> list[Tensor]:
        """x: of one shape in all ranks. Returns every rank's in the first rank, and nothing in others."""
        return [x]


ALONE = RankGroup()


class MuteGroup(RankGroup):
    """As many ranks that nobody talks to: for a trial of one of them, of which only the memory is looked at."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def gather(self, x: Tensor) -> list[Tensor]:
        return [x] * self.size if self.is_first else []


class ConnectedGroup(RankGroup):
    """Over gloo for host memory, over NCCL for GPUs."""

    def __init__(self, rank: int, size: int, store: Path, device: torch.device) -> None:
        """store: a file that all ranks name, in a folder that is theirs. Returns when all ranks are there; raises
        RuntimeError if they do not come."""
        self.rank, self.size = rank, size
        self.num_collectives = 0
        file_store = FileStore(str(store), size)
        file_store.set(f"here/{rank}", "")
        # Not left to the group, which waits for as long as for a collective.
        file_store.wait([f"here/{other}" for other in range(size)], CONNECT_TIMEOUT)
        self._group = _nccl(file_store, rank, size) if device.type == "cuda" else _gloo(file_store, rank, size)
        self._gather_options = GatherOptions()
        self._gather_options.rootRank = 0

    def all_reduce(self, x: Tensor) -> None:
        self.num_collectives += 1
        self._group.allreduce([x]).wait()

    def gather(self, x: Tensor) -> list[Tensor]:
        self.num_collectives += 1
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.is_first else []
        self._group.gather([parts] if parts else [], [x], self._gather_options).wait()
        return parts


def _gloo(store: Any, rank: int, size: int) -> Any:
    gloo: Any = torch.distributed.ProcessGroupGloo
    options = gloo._Options()
    # Not the address that the machine's name stands for, which need not be one of its own.
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    options._timeout = TIMEOUT
    return gloo(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int) -> Any:
    """Each rank's own device has to be the current one."""
    nccl: Any = torch.distributed.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = NCCL_TIMEOUT
    return nccl(store, rank, size, options)
