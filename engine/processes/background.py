"""Background work: how a child that reads or downloads gets time on cores that a step already keeps busy.

The threads of a step wait for the one that is in the middle of a piece of work. So the time that another process holds
a core at once delays a step more than its share of the cores does. Such a child gets a small share in slices of 0.1 ms,
if the system can (Linux 6.12), and delays no step for longer than that. With the usual slices of some milliseconds it
would delay every step that it meets.
"""

import contextlib
import ctypes
import os
import platform
import struct

NICE = 15  # a thirtieth of the time that a busy process of nice 0 gets
SLICE = 100_000  # nanoseconds, the shortest slice of Linux
SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}  # the system call sched_setattr
ATTRIBUTES = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period


def go_to_background(niceness: int = NICE) -> None:
    """Moves the whole process to the background. On a system without settable slices only its niceness changes."""
    os.nice(niceness)
    number = SET_ATTRIBUTES.get(platform.machine())
    if number is not None:
        attributes = ATTRIBUTES.pack(ATTRIBUTES.size, os.SCHED_OTHER, 0, os.nice(0), 0, SLICE, 0, 0)
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).syscall(number, 0, attributes, 0)
