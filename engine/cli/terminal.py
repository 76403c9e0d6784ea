"""The terminal: runs a command that talks to a server and prints, and turns an error into one line and an exit status.

Uses only blora.proto, and needs no engine.
"""

import io
import os
import sys
from collections.abc import Callable

import grpc

from .failure import fail

# The exit statuses that shells report for a program ended by SIGINT and by SIGPIPE.
INTERRUPTED = 130
BROKEN_PIPE = 141


def guarded(act: Callable[[], int]) -> int:
    """Runs a command that talks to a server and prints; returns its exit status. Prints one line for an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal's encoding may lack a character
    try:
        return act()
    except grpc.RpcError as error:
        # An RPC's error is also its call, which knows the status.
        return fail(f"{error.code().name}: {error.details()}")
    except ValueError as error:  # an argument that no message can hold
        return fail(str(error))
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        if error.filename is None:  # an error of stdout, and not of a file that is read
            _drop_output()
        return fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED


def _drop_output() -> None:
    """Discards the buffer of stdout. Python would otherwise write it again at exit and print an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
