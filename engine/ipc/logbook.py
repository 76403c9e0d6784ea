"""Logbook: what an engine process is at, in memory that outlives it. The engine writes it, and the front end reads it.

An engine that crashes takes with it what it knew; the logbook says which request or adapter it was at. While an engine
lives, the logbook says whether it goes on. An engine that shares a process with its user writes one that nobody reads.
"""

import mmap
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

WORD = 8  # bytes
_ACTIVITY, _NUM_BEATS, _EXPECTED, _NUM_IDS, _DIGEST_BYTES, _COMPILED = range(6)  # words of the head
_DIGEST = 6 * WORD  # where the digest begins, in bytes
MAX_DIGEST_BYTES = 64
_IDS = (_DIGEST + MAX_DIGEST_BYTES) // WORD  # the first word of the ids


class Activity(IntEnum):
    """What an engine is at."""

    WAITING = 0  # for messages, or handling one that names nothing
    ADDING = 1  # a request
    REGISTERING = 2  # an adapter
    PLANNING = 3  # a step; the request whose turn it is, if it is the turn of one
    COPYING = 4  # an adapter into the arena
    EXECUTING = 5  # rows
    COMMITTING = 6  # the result of a row
    COMPILING = 7  # the grammar of a request, beside all that


@dataclass(frozen=True, slots=True)
class Entry:
    """What an engine is or was at."""

    activity: Activity
    request_ids: tuple[int, ...] = ()
    digest: str | None = None  # of an adapter

    def __str__(self) -> str:
        names = [*(f"request {request_id}" for request_id in self.request_ids[:8])]
        more = len(self.request_ids) - len(names)
        names += [f"{more} more"] if more > 0 else []
        names += [f"adapter {self.digest}"] if self.digest else []
        return " ".join([self.activity.name.lower(), ", ".join(names)]).strip()


@dataclass(frozen=True, slots=True)
class Pulse:
    """A sign of life: it differs from the one before as long as an engine goes on."""

    num_beats: int
    expected: float  # seconds that the present activity may well take


def num_bytes_of(max_rows: int) -> int:
    """The size of a logbook for steps of so many rows."""
    return (_IDS + max_rows) * WORD


class Logbook:
    """Has one writer, and another one for what is compiled. Words are written whole, so that a reader in another
    process never sees half of one."""

    def __init__(self, memory: "mmap.mmap | bytearray") -> None:
        """memory: zeroed, as large as `num_bytes_of` says."""
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("Q")
        self._reals = self._bytes.cast("d")

    # The writer.

    def note(
        self, activity: Activity, request_ids: Sequence[int] = (), digest: str = "", expected: float = 0.0
    ) -> None:
        """Begins an activity. Ids beyond the size of the logbook are left out."""
        words = self._words
        words[_ACTIVITY] = Activity.WAITING  # a reader must not take the new names for those of the old activity
        count = min(len(request_ids), len(words) - _IDS)
        if count:
            words[_IDS : _IDS + count] = memoryview(array("Q", request_ids[:count]))
        name = digest.encode()[:MAX_DIGEST_BYTES]
        if name:
            self._bytes[_DIGEST : _DIGEST + len(name)] = name
        words[_NUM_IDS], words[_DIGEST_BYTES] = count, len(name)
        self._reals[_EXPECTED] = expected
        words[_NUM_BEATS] += 1
        words[_ACTIVITY] = activity

    def rest(self) -> None:
        """Begins to wait: what happens now is no fault of any request or adapter."""
        self._words[_ACTIVITY] = Activity.WAITING
        self._reals[_EXPECTED] = 0.0
        self._words[_NUM_BEATS] += 1

    def note_compiled(self, request_id: int | None) -> None:
        """Begins to compile the grammar of a request, or ends it: None. Another thread than that of all other notes may
        tell it."""
        self._words[_COMPILED] = 0 if request_id is None else request_id + 1

    # Readers.

    def entry(self) -> Entry:
        """The present activity, or the last one of an engine that has ended. A grammar that is being compiled is named
        alone: it is the work of a stranger, lasts some milliseconds, and what runs beside it is what always runs."""
        if self._words[_COMPILED]:
            return Entry(Activity.COMPILING, (self._words[_COMPILED] - 1,))
        activity = Activity(self._words[_ACTIVITY])
        if activity is Activity.WAITING:
            return Entry(activity)
        request_ids = tuple(self._words[_IDS : _IDS + self._words[_NUM_IDS]])
        name = bytes(self._bytes[_DIGEST : _DIGEST + self._words[_DIGEST_BYTES]]).decode(errors="replace")
        return Entry(activity, request_ids, name or None)

    def pulse(self) -> Pulse:
        return Pulse(self._words[_NUM_BEATS], self._reals[_EXPECTED])


def private_logbook(max_rows: int) -> Logbook:
    """A logbook that no other process can read."""
    return Logbook(bytearray(num_bytes_of(max_rows)))


def create_logbook(max_rows: int) -> tuple[Logbook, int]:
    """Returns a logbook, and the descriptor by which another process opens it; the caller closes the descriptor."""
    descriptor = os.memfd_create("blora-logbook", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, num_bytes_of(max_rows))
        return Logbook(mmap.mmap(descriptor, num_bytes_of(max_rows))), descriptor
    except BaseException:
        os.close(descriptor)
        raise


def open_logbook(descriptor: int) -> Logbook:
    """Opens a logbook that another process has created, and closes the descriptor."""
    try:
        return Logbook(mmap.mmap(descriptor, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)
