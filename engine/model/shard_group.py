"""ShardGroup: the shards that share a model, and the collectives of their computation. It knows no process.

A group is made over a store that all shards reach. It is not the default group of torch.distributed: a process has only
one of those, but may hold several engines or other users of it. Collectives run in the order of the calls, which has to
be the same in every shard.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch._C._distributed_c10d import GatherOptions, Store

CONNECT_TIMEOUT = 120.0  # seconds
CONNECT_PAUSE = 0.005  # seconds
TIMEOUT = timedelta(minutes=10)  # of gloo's collectives, which notice the death of a shard at once
# Of NCCL's collectives, whose kernels wait for a shard that has died; after it the process is ended. It is longer than
# the first step of a shard, which compiles and allocates.
NCCL_TIMEOUT = timedelta(minutes=2)


class ShardGroup:
    """The group of a single shard, which needs no communication."""

    index = 0
    size = 1
    num_collectives = 0  # begun so far

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def all_reduce(self, x: Tensor) -> None:
        """Replaces x by the sum over the shards, with the same bits in each."""

    def gather(self, x: Tensor) -> list[Tensor]:
        """Collects x in the first shard: returns every shard's x there, nothing elsewhere. x: of one shape in all."""
        return [x]

    def is_done(self) -> bool:
        """Whether all collectives that were begun are done. It does not wait."""
        return True

    def abort(self) -> None:
        """Ends the collectives that were begun, and releases their GPU memory. It has to be the last call."""


ALONE = ShardGroup()


class MuteGroup(ShardGroup):
    """A group whose other shards do not exist: for a trial of one shard, of which only the memory matters."""

    def __init__(self, index: int, size: int) -> None:
        self.index, self.size = index, size

    def gather(self, x: Tensor) -> list[Tensor]:
        return [x] * self.size if self.is_first else []


class ConnectedGroup(ShardGroup):
    """A group of several shards: over gloo for host memory, over NCCL for GPUs."""

    def __init__(
        self,
        index: int,
        size: int,
        store: Store,
        device: torch.device,
        check_others: Callable[[], None] = lambda: None,
    ) -> None:
        """Waits for all shards. Raises RuntimeError if they do not come in time.

        store: one that all shards of the group reach, and no other group.
        check_others: called while the shards are awaited; it raises if they cannot come any more.
        """
        self.index, self.size = index, size
        self.num_collectives = 0
        _meet(store, index, size, check_others)
        self._group = _nccl(store, index, size, device) if device.type == "cuda" else _gloo(store, index, size)
        self._last: Any = None  # the last collective; None once it is known to be done
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
        """Makes the next operation wait for the collective: on a GPU its stream waits, not the host."""
        self._last = collective
        collective.wait()

    def is_done(self) -> bool:
        if self._last is not None and self._last.is_completed():
            self._last = None  # releases its memory too
        return self._last is None

    def abort(self) -> None:
        if self._group is not None:
            self._group.abort()
        self._group = self._last = None


def _meet(store: Store, index: int, size: int, check_others: Callable[[], None]) -> None:
    """Waits for all shards. The group's own wait would last as long as that for a collective."""
    store.set(f"here/{index}", "")
    deadline = time.monotonic() + CONNECT_TIMEOUT
    while not store.check([f"here/{other}" for other in range(size)]):
        check_others()
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all of {size} shards came within {CONNECT_TIMEOUT} s")
        time.sleep(CONNECT_PAUSE)


def _gloo(store: Store, index: int, size: int) -> Any:
    gloo: Any = torch.distributed.ProcessGroupGloo
    options = gloo._Options()
    # By default gloo takes the address of the machine's name, which may belong to another machine.
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    options._timeout = TIMEOUT
    return gloo(store, index, size, options)


def _nccl(store: Store, index: int, size: int, device: torch.device) -> Any:
    """device: the shard's own; it has to be the current device."""
    nccl: Any = torch.distributed.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = NCCL_TIMEOUT
    group = nccl(store, index, size, options)
    # Connecting now reports a missing shard at the start, not at the first collective.
    group.eager_connect_single_device(device)
    return group
