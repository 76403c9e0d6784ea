"""NameHistory: which adapter a name may have meant to a request, by the calls that changed it.

A name is a register that several clients write. A request may get what a write brought that began before the request
had ended, unless another write, which began after that one had ended, had ended before the request began.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Write:
    start: float
    end: float  # infinity for a write that failed or was cancelled: nobody knows when it took effect, or whether
    digests: frozenset[str]  # one of them; none for an unload


class NameHistory:
    def __init__(self) -> None:
        self._writes: dict[str, list[Write]] = {}

    def note(self, name: str, start: float, end: float, digests: Collection[str]) -> None:
        self._writes.setdefault(name, []).append(Write(start, end, frozenset(digests)))

    def could_mean(self, name: str, digest: str, start: float, end: float) -> bool:
        """Whether a request between these times can have got the adapter."""
        writes = self._writes.get(name, [])
        brought = [write for write in writes if digest in write.digests and write.start <= end]
        return any(not self._is_overwritten(write, writes, start) for write in brought)

    def _is_overwritten(self, write: Write, writes: list[Write], start: float) -> bool:
        return any(other.start > write.end and other.end < start for other in writes)
