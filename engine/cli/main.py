"""The command line: `blora serve`, `client`, `adapters`, `info` and the commands that installed packages add.

Owns exit statuses and the environment. Commands import the engine and the server only when they run, so that the other
commands work without torch. Further commands are entry points of the group "blora.commands": modules with HELP,
`add_arguments(parser)` and `run(args)`.
"""

import argparse
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points, version
from typing import Any

from ..arguments.parser import FlexibleArgumentParser
from . import adapters_flags, chat_flags, client_flags, serve_command, top_flags
from .config_file import ConfigError, add_config_flags, with_config
from .connection_flags import add_target
from .failure import fail
from .identity_flags import API_KEY_VARIABLE

INSTALL = "pip install '.[engine]'"
OWN_COMMANDS = ("serve", "chat", "client", "adapters", "info", "top", "collect-env")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    # The modules of further commands are imported only to run one of them, or for a help text that lists them.
    further = {} if argv and argv[0] in OWN_COMMANDS else further_commands()
    parser = build_parser(further)
    try:
        args = parser.parse_args(with_config(argv, parser))
    except ConfigError as error:
        parser.error(f"--config: {error}")
    args.environment_key = os.environ.get(API_KEY_VARIABLE, "")
    _add_tools()
    try:
        return _run(args, parser, further)
    except ModuleNotFoundError as error:
        purpose = {"serve": "a server", "adapters": "--model", "chat": "a model in process"}.get(
            args.command, args.command
        )
        return fail(f"the module {error.name} is missing; {purpose} needs, in a checkout of blora: {INSTALL}")


def _run(args: argparse.Namespace, parser: argparse.ArgumentParser, further: Mapping[str, Any]) -> int:
    match args.command:
        case "serve":
            # Children have no use for the key.
            return serve_command.run(args, parser, os.environ.pop(API_KEY_VARIABLE, ""))
        case "client":
            return _client(args, parser)
        case "adapters":
            from . import adapters_command

            return adapters_command.run(args)
        case "info":
            from . import info_command

            return info_command.run(args)
        case "chat":
            from . import chat_command

            return chat_command.run(args, parser)
        case "top":
            from . import top_command

            return top_command.run(args)
        case "collect-env":
            from . import collect_env_command

            return collect_env_command.run(args)
    return int(further[args.command].run(args))


def _add_tools() -> None:
    """Adds the folder of this command to PATH. FlashInfer runs ninja, which is installed there, and PATH has the folder
    only in an activated environment."""
    folder = sysconfig.get_path("scripts")
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if folder not in folders:
        os.environ["PATH"] = os.pathsep.join([*folders, folder])


def further_commands() -> dict[str, Any]:
    """Returns name -> module of the commands that installed packages add."""
    return {entry.name: entry.load() for entry in entry_points(group="blora.commands")}


def build_parser(further: Mapping[str, Any] | None = None) -> argparse.ArgumentParser:
    parser = FlexibleArgumentParser(prog="blora", description="Serves one base model and thousands of LoRA adapters.")
    parser.add_argument("--version", action="version", version=f"blora {version('blora')}")
    further = further or {}
    metavar = ",".join([*OWN_COMMANDS, *further])
    commands = parser.add_subparsers(dest="command", required=True, metavar=f"{{{metavar}}}")
    serve_command.add_arguments(commands.add_parser("serve", help="serve a model over gRPC"))
    chat_flags.add_arguments(commands.add_parser("chat", help="have a conversation with a model or an adapter"))
    client_flags.add_arguments(commands.add_parser("client", help="send a prompt to a server and print the answer"))
    adapters_flags.add_arguments(commands.add_parser("adapters", help="check, load, list and unload adapters"))
    add_target(commands.add_parser("info", help="show the limits, load and counters of a server's engine"))
    top_flags.add_arguments(commands.add_parser("top", help="show a server's load, live"))
    commands.add_parser("collect-env", help="print what a report of a bug needs")
    for name, module in further.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP))
    add_config_flags(parser)
    return parser


def _client(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from . import client_command

    if len(dict(args.adapter)) < len(args.adapter):
        parser.error("--adapter: each adapter may be given once, but one is given twice")
    return client_command.run(args)


if __name__ == "__main__":
    sys.exit(main())
