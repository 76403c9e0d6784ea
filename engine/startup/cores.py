"""Cores: how many of the machine's cores this process may use, and so how many threads compute."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ..memory.control_groups import ControlGroup, control_groups


def choose_num_threads(wanted: int | None, num_shards: int) -> int:
    """Returns the threads of one shard; all shards of a machine compute at the same time. wanted: the threads of all
    shards together; None: as many as there are cores, but no more than torch would take, which OMP_NUM_THREADS sets."""
    if wanted is not None:
        return max(wanted // num_shards, 1)
    return min(max(usable_cores() // num_shards, 1), torch.get_num_threads())


def usable_cores(root: Path = Path("/")) -> int:
    """Returns the number of cores that the process may run on, within the quota of every control group; at least 1.

    A part of a core counts for nothing: one thread more would use up the quota before its period ends, and the system
    would then stop all threads until the next one begins.
    """
    return max(min(len(os.sched_getaffinity(0)), *map(int, _quotas(root)), 1 << 16), 1)


def _quotas(root: Path) -> Iterator[float]:
    """Yields the cores that each control group with a limit may keep busy."""
    for group in control_groups("cpu", root):
        match _quota_and_period(group):
            case [quota, period] if quota.isdigit() and period.isdigit() and int(period):
                yield int(quota) / int(period)


def _quota_and_period(group: ControlGroup) -> list[str]:
    """Returns microseconds; another text than a number is no limit."""
    if group.version == 2:
        return " ".join(group.read("cpu.max")).split()
    return group.read("cpu.cfs_quota_us") + group.read("cpu.cfs_period_us")
