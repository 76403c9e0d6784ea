"""The flags of `blora top`. What it does is in top_command, which is imported only to do it."""

import argparse

from ..arguments.flag_types import seconds
from .connection_flags import add_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "--interval",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between two pictures at least; twice as long when nothing changes (default: %(default)s)",
    )
    parser.add_argument("--once", action="store_true", help="print one picture and end, for scripts")
