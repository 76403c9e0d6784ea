"""`blora bench serve`: open-loop load on a running server, with the flags and the result of `vllm bench serve`."""

import argparse

from .flags import HELP, add_arguments

__all__ = ["HELP", "add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Returns the exit status; imports what drives a load only here."""
    from .program import run as run_program

    return run_program(args)
