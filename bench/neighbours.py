"""Neighbours: how many cores other processes kept busy during a measurement. On two cores, one busy neighbour takes
half of the speed of two threads.
"""

import os
import time
from pathlib import Path

USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL = 0, 1, 2, 5, 6, 7  # columns of the line "cpu" in /proc/stat
WARN_CORES = 0.15


class Neighbours:
    """Use as `with Neighbours() as neighbours`. Afterwards `cores` is the average number of cores that other processes
    kept busy."""

    cores = 0.0

    def __enter__(self) -> "Neighbours":
        self._started = (time.monotonic(), _busy_seconds(), _own_seconds())
        return self

    def __exit__(self, *_: object) -> None:
        wall, busy, own = (
            now - before
            for now, before in zip((time.monotonic(), _busy_seconds(), _own_seconds()), self._started, strict=True)
        )
        self.cores = max(busy - own, 0.0) / max(wall, 1e-9)

    @property
    def disturbing(self) -> float | None:
        """`cores` for a column of a table; None if no process disturbed the measurement."""
        return self.cores if self.cores > WARN_CORES else None

    @property
    def warning(self) -> str:
        """A note for the line of a figure; empty if no process disturbed the measurement."""
        return f" [other processes kept {self.cores:.1f} cores busy]" if self.disturbing else ""


def _busy_seconds() -> float:
    """Returns the busy seconds of all cores, the time that a hypervisor took included."""
    columns = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(columns[index] for index in (USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL)) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Returns the CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])
