"""A failure of a command: one line on standard error, and the exit status 1."""

import sys


def fail(reason: str) -> int:
    print(f"blora: {reason}", file=sys.stderr)
    return 1
