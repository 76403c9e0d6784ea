"""The flags of `blora client`. What it does is in client_command, which is imported only to do it."""

import argparse

from ..arguments.flag_types import scaled_name, seconds
from .connection_flags import add_target
from .sampling_flags import add_sampling_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue; - reads it from standard input")
    parser.add_argument(
        "--adapter",
        type=scaled_name,
        action="append",
        default=[],
        metavar="NAME[=SCALE]",
        help="adapter to use; may be repeated, and the changes of all are summed (default: the base model)",
    )
    parser.add_argument("--chat", action="store_true", help="send PROMPT as a user's message in a conversation")
    parser.add_argument("--system", metavar="TEXT", help="system message of the conversation, with --chat")
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON, when it is complete")
    add_target(parser)
    request = parser.add_argument_group("request")
    request.add_argument("--tenant", default="", metavar="NAME", help="tenant of the request (default: none)")
    request.add_argument("--priority", type=int, default=0, help="a smaller one is served earlier (default: 0)")
    request.add_argument("--request-id", default="", metavar="ID", help="id of the request (default: the server's)")
    request.add_argument(
        "--cache-salt", default="", metavar="TEXT", help="share prefixes only with requests of the same"
    )
    request.add_argument("--timeout", type=seconds, metavar="SECONDS", help="deadline of the answer (default: none)")
    add_sampling_flags(parser, max_tokens=256)
