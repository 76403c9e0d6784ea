"""What other processes took of the machine while something was measured: a busy neighbour makes two threads many times
slower, because each waits for the other at every barrier."""

import os
import time
from pathlib import Path

USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL = 0, 1, 2, 5, 6, 7  # columns of the line "cpu" in /proc/stat
WARN_CORES = 0.15


class Neighbours:
    """Use as `with Neighbours() as neighbours`; afterwards `cores` is how many cores others kept busy on average."""

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
        """The same, for a column of a table: None where nobody disturbed."""
        return self.cores if self.cores > WARN_CORES else None

    @property
    def warning(self) -> str:
        """Empty where nobody disturbed."""
        return f" [others kept {self.cores:.1f} cores busy]" if self.disturbing else ""


def _busy_seconds() -> float:
    """Of all cores, what a hypervisor took included."""
    columns = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(columns[index] for index in (USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL)) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Of this process and children that have ended."""
    return sum(os.times()[:4])
