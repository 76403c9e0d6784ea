"""Lifeline: a pipe that ties one process to another: whoever holds the reading end ends when the writing end closes.

The kernel kills it, whatever it is doing: loading for minutes, being stopped, waiting on a GPU for someone who is gone.
Where it reads its channel, it would find that closed, but it may never get there.
"""

import fcntl
import os
import select
import signal


def hang_on(reading_end: int) -> None:
    """From now on this process is killed when nobody has the writing end any more; at once if that is so already."""
    fcntl.fcntl(reading_end, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reading_end, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(reading_end, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([reading_end], [], [], 0)[0]:  # closed before there was anybody to be told
        signal.raise_signal(signal.SIGKILL)
