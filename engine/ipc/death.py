"""Death: how an engine process has ended, and what it was at. Judges nothing."""

import signal
from dataclasses import dataclass

from .logbook import Activity, Entry

# The signals by which people, service managers and the kernel's memory killer end a process: no fault of what it did.
FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


@dataclass(frozen=True, slots=True)
class Death:
    how: str  # "ended with status 1", for the log and for messages
    is_crash: bool  # nothing outside the process ended it
    entry: Entry = Entry(Activity.WAITING)  # what it was at
    is_standing: bool = False  # it was ended because it went on no more


def death_of(status: int, entry: Entry) -> Death:
    """status: the exit status, or the signal's number, negated."""
    if status >= 0:
        return Death(f"ended with status {status}", True, entry)
    return Death(f"was ended by {_name_of(-status)}", -status not in FROM_OUTSIDE, entry)


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
