"""The limits of a child that runs what strangers wrote: beyond them the kernel ends it, and nobody else notices."""

import resource
from math import ceil
from pathlib import Path


def limit_time(seconds: int) -> None:
    """Has the kernel end this process when what comes next takes more time of a core."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, ceil(usage.ru_utime + usage.ru_stime) + seconds)


def limit_memory(num_bytes: int) -> None:
    """Lets this process take so many bytes beside what it has."""
    _limit(resource.RLIMIT_AS, _address_space() + num_bytes)
    _limit(resource.RLIMIT_CORE, 0)


def resident_bytes() -> int:
    return _memory_sizes()[1]


def _address_space() -> int:
    """The bytes that this process has mapped."""
    return _memory_sizes()[0]


def _memory_sizes() -> list[int]:
    sizes = Path("/proc/self/statm").read_text().split()
    return [int(size) * resource.getpagesize() for size in sizes]


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
