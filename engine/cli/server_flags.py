"""The flags that say how long a server waits, and for whom."""

import argparse
from typing import Any

from ..arguments.flag_types import seconds

FLAGS = ("shutdown_timeout", "drain_grace", "slow_reader_timeout")  # fields of ServerTimes


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("waiting")
    duration: dict[str, Any] = {"type": seconds, "metavar": "SECONDS"}
    group.add_argument(
        "--shutdown-timeout",
        **duration,
        help="time from SIGTERM for accepted requests to finish; what is left then ends with UNAVAILABLE (default: 20)",
    )
    group.add_argument(
        "--drain-grace",
        **duration,
        help="first part of that time, in which health says NOT_SERVING and requests are still accepted, for routers "
        "that learn of it late (default: 0)",
    )
    group.add_argument(
        "--slow-reader-timeout",
        **duration,
        help="time that a client may leave a stream unread while messages wait for it; the request then ends with "
        "RESOURCE_EXHAUSTED (default: 60)",
    )


def given_times(args: argparse.Namespace) -> dict[str, float]:
    """Returns the fields of ServerTimes that were given."""
    return {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
