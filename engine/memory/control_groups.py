"""Control groups: the folders in which Linux keeps the limits of this process, of version 1 and 2.

Knows no limit's meaning: `memory/budget.py` reads those of memory, `startup/cores.py` those of the cores.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ControlGroup:
    folder: Path
    version: int

    def read(self, name: str) -> list[str]:
        """Returns the lines of a file; none if the system does not show it."""
        return _lines(self.folder / name)


def control_groups(controller: str, root: Path) -> Iterator[ControlGroup]:
    """Yields this process's groups, and all groups around them, for version 2 and for a controller of version 1.

    A container sees its own group as the outermost, whichever path the system names: a folder that is not there has no
    limits.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _upwards(root / "sys/fs/cgroup", path, 2)
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controllers  # "cpu,cpuacct"; not every system has a link for each of them
            yield from _upwards(base if base.is_dir() else base.with_name(controller), path, 1)


def _upwards(base: Path, path: str, version: int) -> Iterator[ControlGroup]:
    group = base / path.lstrip("/")
    for folder in [group, *group.parents]:
        if not folder.is_relative_to(base):
            return
        yield ControlGroup(folder, version)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
