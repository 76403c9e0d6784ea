"""`blora info`: prints a server's facts, load and counters, a line each. Needs no engine."""

import argparse
from dataclasses import asdict

from . import terminal
from .connection_flags import open_client


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. args: those of the command `info` in main.py."""
    return terminal.guarded(lambda: _print_info(args))


def _print_info(args: argparse.Namespace) -> int:
    with open_client(args, args.target) as client:
        info = client.info()
    for name, value in asdict(info).items():
        print(f"{name}: {value}")
    return 0
