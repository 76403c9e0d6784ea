"""Background work: how a child that reads or downloads gets the cores beside a step that has them all.

Two OpenMP threads wait for each other at every barrier, so what counts is less how much another process takes than
how long it takes at a time. It gets a small share in slices of 0.1 ms, where the system can (Linux 6.12), and no step
is held up for longer; with the usual slices of some milliseconds it would be felt in every step that it meets.
"""

import contextlib
import ctypes
import os
import platform
import struct

NICE = 15  # a thirtieth of what a busy process gets
SLICE = 100_000  # nanoseconds, the least that Linux gives
SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}  # the system call sched_setattr
ATTRIBUTES = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period


def go_to_background() -> None:
    """For the whole process. A system that knows no slices keeps its own."""
    os.nice(NICE)
    number = SET_ATTRIBUTES.get(platform.machine())
    if number is not None:
        attributes = ATTRIBUTES.pack(ATTRIBUTES.size, os.SCHED_OTHER, 0, os.nice(0), 0, SLICE, 0, 0)
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).syscall(number, 0, attributes, 0)
