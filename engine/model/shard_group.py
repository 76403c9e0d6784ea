"""ShardGroup: the shards that share a model, and what they tell each other while they compute. Knows no process.

It is made of a store that all shards reach, and is no default group of torch.distributed, of which a process has one:
several engines may be in a process, or other users of it. Collectives run in the order of the calls, which has to be
the same in every shard.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch._C._distributed_c10d import FileStore, GatherOptions

CONNECT_TIMEOUT = 120.0  # seconds
CONNECT_PAUSE = 0.005  # seconds
TIMEOUT = timedelta(minutes=10)  # of a collective of gloo, where one that dies is known of at once
# Of one of NCCL, where the kernels of the others wait for one that dies: then the process is ended. Longer than a shard
# takes in its first step for what is only made then.
NCCL_TIMEOUT = timedelta(minutes=2)


class ShardGroup:
    """Of one shard, which has nobody to talk to."""

    index = 0
    size = 1
    num_collectives = 0  # begun so far

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def all_reduce(self, x: Tensor) -> None:
        """Puts the sum over the shards into x, the same bits in each."""

    def gather(self, x: Tensor) -> list[Tensor]:
        """x: of one shape in all shards. Returns every shard's in the first shard, and nothing in others."""
        return [x]

    def is_done(self) -> bool:
        """Whether the collectives that are begun are; does not wait."""
        return True

    def abort(self) -> None:
        """The last call: ends collectives that are begun, and what they hold of a GPU."""


ALONE = ShardGroup()


class MuteGroup(ShardGroup):
    """As many shards that nobody talks to: for a trial of one of them, of which only the memory is looked at."""

    def __init__(self, index: int, size: int) -> None:
        self.index, self.size = index, size

    def gather(self, x: Tensor) -> list[Tensor]:
        return [x] * self.size if self.is_first else []


class ConnectedGroup(ShardGroup):
    """Over gloo for host memory, over NCCL for GPUs."""

    def __init__(
        self,
        index: int,
        size: int,
        store: Path,
        device: torch.device,
        check_others: Callable[[], None] = lambda: None,
    ) -> None:
        """store: a file that all shards name, and nobody else. check_others: called while they come, and raises if they
        cannot any more. Returns when all shards are there; raises RuntimeError if they do not come."""
        self.index, self.size = index, size
        self.num_collectives = 0
        file_store = FileStore(str(store), size)
        _meet(file_store, index, size, check_others)
        self._group = (
            _nccl(file_store, index, size, device) if device.type == "cuda" else _gloo(file_store, index, size)
        )
        self._last: Any = None  # collective; until it is known to be done
        self._gather_options = GatherOptions()
        self._gather_options.rootRank = 0

    def all_reduce(self, x: Tensor) -> None:
        self.num_collectives += 1
        self._begun(self._group.allreduce([x]))

    def gather(self, x: Tensor) -> list[Tensor]:
        self.num_collectives += 1
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.is_first else []
        self._begun(self._group.gather([parts] if parts else [], [x], self._gather_options))
        return parts

    def _begun(self, collective: Any) -> None:
        """What comes next waits for it: on a GPU its stream, and not the host."""
        self._last = collective
        collective.wait()

    def is_done(self) -> bool:
        if self._last is not None and self._last.is_completed():
            self._last = None  # and what it holds
        return self._last is None

    def abort(self) -> None:
        self._group.abort()


def _meet(store: Any, index: int, size: int, check_others: Callable[[], None]) -> None:
    """Not left to the group, which waits for as long as for a collective."""
    store.set(f"here/{index}", "")
    deadline = time.monotonic() + CONNECT_TIMEOUT
    while not store.check([f"here/{other}" for other in range(size)]):
        check_others()
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all of {size} shards came within {CONNECT_TIMEOUT} s")
        time.sleep(CONNECT_PAUSE)


def _gloo(store: Any, index: int, size: int) -> Any:
    gloo: Any = torch.distributed.ProcessGroupGloo
    options = gloo._Options()
    # Not the address that the machine's name stands for, which need not be one of its own.
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    options._timeout = TIMEOUT
    return gloo(store, index, size, options)


def _nccl(store: Any, index: int, size: int, device: torch.device) -> Any:
    """device: the shard's own, which has to be the current one."""
    nccl: Any = torch.distributed.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = NCCL_TIMEOUT
    group = nccl(store, index, size, options)
    # Now, when who does not come is told at the start, and not at the first collective.
    group.eager_connect_single_device(device)
    return group
