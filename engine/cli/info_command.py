"""`blora info`: prints a server's facts, load and counters, a line each. Needs no engine."""

import argparse

from . import terminal
from .connection_flags import open_client


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. args: those of the command `info` in main.py."""
    return terminal.guarded(lambda: _print_info(args))


def _print_info(args: argparse.Namespace) -> int:
    with open_client(args, args.target) as client:
        info = client.info()
    for field in info.DESCRIPTOR.fields:  # protobuf's own text leaves out fields that are 0
        print(f"{field.name}: {getattr(info, field.name)}")
    return 0
