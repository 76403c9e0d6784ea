"""Lifeline: a pipe that ties one process to another: the process at the reading end dies when the writing end closes.

The kernel kills it, whatever it is doing: loading for minutes, being stopped, waiting on a GPU for a process that is
gone. It would find its channel closed, too, but it may never get to read it.
"""

import fcntl
import os
import select
import signal


def hang_on(reading_end: int) -> None:
    """Has the kernel kill this process when no process holds the writing end any more; at once if none does now."""
    fcntl.fcntl(reading_end, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reading_end, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(reading_end, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([reading_end], [], [], 0)[0]:  # the writing end closed before the kernel was asked to watch it
        signal.raise_signal(signal.SIGKILL)
