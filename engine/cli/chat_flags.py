"""The flags of `blora chat`. What it does is in chat_command, which is imported only to do it."""

import argparse
from dataclasses import fields

from ..arguments.engine_args import EngineArgs
from ..arguments.flag_types import named_path
from ..arguments.flags import SHOWN, add_flags
from .connection_flags import add_credentials
from .sampling_flags import add_sampling_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="Hugging Face folder, hub id or .gguf file")
    parser.add_argument("--use", default="", metavar="NAME", help="adapter to begin with (default: the base model)")
    parser.add_argument("--system", metavar="TEXT", help="system message of the conversation (default: none)")
    parser.add_argument(
        "--adapter",
        type=named_path,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="adapter to load, in process; may be repeated",
    )
    server = parser.add_argument_group("server", "With --address a server answers, and there is no MODEL.")
    server.add_argument("--address", metavar="HOST:PORT", help="server to talk to (default: the model runs in process)")
    server.add_argument("--tenant", default="", metavar="NAME", help="tenant of the requests (default: none)")
    add_credentials(server)
    add_sampling_flags(parser, max_tokens=512)
    add_engine_flags(parser)


def engine_options() -> list[str]:
    """The options of an engine in process; the seed is that of the sampling."""
    return [entry.name for entry in fields(EngineArgs) if entry.name in SHOWN and entry.name not in ("model", "seed")]


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engine", "For a model in process. What is left out has the engine's default.")
    names = engine_options()
    add_flags(engine, [entry for entry in fields(EngineArgs) if entry.name in names], with_defaults=False)
