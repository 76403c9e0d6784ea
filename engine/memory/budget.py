"""Budget: how many bytes the arena and the host cache may have. Reads limits and user options; allocates nothing."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from .control_groups import control_groups

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}

# A control group's files for the limit and the usage, and the line of memory.stat for the page cache, by its version.
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def is_fraction(memory: int | float | str) -> bool:
    """Returns True for a share of the usable memory, 0.5 or "0.5", and False for a number of bytes."""
    if isinstance(memory, str):
        return re.fullmatch(r"\s*\d*\.\d+\s*", memory) is not None
    return isinstance(memory, float) and memory <= 1


def parse_memory(memory: int | float | str, usable: int, option: str = "memory") -> int:
    """Returns a number of bytes. memory: bytes, a text such as "2GiB" or "0.5", or a fraction of `usable`. option: the
    name of the option, for the message. Raises ValueError."""
    if isinstance(memory, str):
        return _parse_text(memory, usable, option)
    if isinstance(memory, float) and 0 < memory <= 1:
        return int(memory * usable)
    if isinstance(memory, bool) or not isinstance(memory, int | float) or not 1 <= memory < math.inf:
        raise ValueError(f"{option}: {memory!r} is neither a number of bytes nor a fraction up to 1")
    return int(memory)


def _parse_text(text: str, usable: int, option: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if match is None:
        raise ValueError(f"{option}: {text!r} is not a size such as 2GiB, 512M or a fraction such as 0.5")
    number, unit = match.groups()
    if not unit and "." in number:
        if not 0 < float(number) <= 1:
            raise ValueError(f"{option}: {text!r} is neither a size with a unit nor a fraction up to 1")
        return int(float(number) * usable)
    size = float(number) * UNITS[unit or ""]
    return parse_memory(int(size) if size < math.inf else size, usable, option)


def usable_memory(root: Path = Path("/")) -> int:
    """Returns the bytes that this process may still take: the system's free memory, within the limits of every control
    group."""
    return min([_available(root), *_cgroup_rooms(root)])


def _available(root: Path) -> int:
    fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """Yields the bytes left below the limit of each control group that has one."""
    for group in control_groups("memory", root):
        limit_name, usage_name, cache_name = FILES[group.version]
        limit, usage = group.read(limit_name), group.read(usage_name)
        if limit and usage and limit[0].isdigit():
            cache = dict(line.split() for line in group.read("memory.stat")).get(cache_name, "0")
            yield max(int(limit[0]) - int(usage[0]) + int(cache), 0)  # the system frees page cache on demand
