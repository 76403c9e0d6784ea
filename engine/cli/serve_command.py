"""`blora serve`: its flags, and the server made from them. Imports the engine and the server only to run it."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from ..arguments.engine_args import AsyncEngineArgs, served_options
from ..arguments.flag_types import lora_module, named_path, port, size
from ..arguments.flags import add_flags
from ..arguments.frontend_args import FrontendArgs
from .answer_flags import ANSWER_FLAGS, add_answer_flags
from .failure import fail
from .http_flags import HTTP_FLAGS, add_http_flags, http_options
from .identity_flags import access, add_identity_flags
from .server_flags import FLAGS, add_server_flags, given_times
from .telemetry_flags import TELEMETRY_FLAGS, add_telemetry_flags

ADAPTER_OPTIONS = ("adapter_hub", "adapter_watch", "adapter_upload_bytes", "adapter_signers")  # of AsyncLLM
OWN = ("model", *FLAGS, *HTTP_FLAGS, *ANSWER_FLAGS, *TELEMETRY_FLAGS)  # what the command takes itself
# Bounds that a server for anybody needs, and a program that asks for thousands of answers at once does not. Half a
# minute is longer than people wait, and what a batch can bridge by trying again; the tokens take some 25 MB.
SERVED_BY_DEFAULT = {"max_queue_seconds": 10.0, "max_num_queued_tokens": 1 << 18}
ENGINE = "An option left out takes the engine's default. Other flags of `vllm serve` are accepted with one notice, or "
ENGINE += "refused where ignoring them would change answers or open a door."


@dataclass
class ServeArgs(AsyncEngineArgs, FrontendArgs):
    """The flags of a server that are options of the engine, and those that vLLM's front end has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: an argument that is not given leaves what its other form has set.
    model: dict[str, Any] = {"dest": "model", "metavar": "MODEL", "default": argparse.SUPPRESS}
    parser.add_argument(nargs="?", **model, help="Hugging Face folder, hub id or .gguf file (default: that of --model)")
    parser.add_argument("--model", **model, help="the same as MODEL, as vLLM has it (default: MODEL)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port, default=50051, help="port; 0 takes a free one (default: %(default)s)")
    _add_adapter_flags(parser)
    add_http_flags(parser)
    add_answer_flags(parser)
    add_server_flags(parser)
    add_identity_flags(parser)
    add_telemetry_flags(parser)
    engine = parser.add_argument_group("engine", ENGINE)
    options = [entry for entry in fields(ServeArgs) if entry.name not in OWN]
    add_flags(engine, options, with_defaults=False, defaults=SERVED_BY_DEFAULT)


def _add_adapter_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter",
        type=named_path,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="adapter to load at start-up, from a folder or the hub; may be repeated",
    )
    parser.add_argument(
        "--lora-modules",
        type=lora_module,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PATH",
        help='adapters to load at start-up, as vLLM names them: NAME=PATH, or {"name": NAME, "path": PATH}',
    )
    parser.add_argument(
        "--adapter-root",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="let clients load adapters from folders below DIR; may be repeated (default: no folder)",
    )
    parser.add_argument(
        "--adapter-hub",
        action=argparse.BooleanOptionalAction,
        help="let clients load adapters by hub id, which the server downloads (default: not allowed)",
    )
    parser.add_argument(
        "--adapter-watch",
        type=Path,
        metavar="DIR",
        help="watch DIR: load each folder in it under its name, load it again when it changes, unload it when it goes",
    )
    parser.add_argument(
        "--adapter-upload-bytes",
        type=size,
        metavar="SIZE",
        help="let clients upload adapters of at most SIZE each, such as 256M (default: no uploads)",
    )
    parser.add_argument(
        "--adapter-signers",
        type=Path,
        metavar="FILE",
        help="public keys of Ed25519 in PEM; load only adapters that one of them has signed, by `blora adapters sign` "
        "(default: signatures are not looked at)",
    )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the keyword arguments of AsyncLLM: the options given that have a meaning here, and those about adapters.
    Gives one notice for flags that have none. Raises ValueError for a flag that is not served."""
    names = [entry.name for entry in fields(ServeArgs) if entry.name not in OWN]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    adapters = {name: getattr(args, name) for name in ADAPTER_OPTIONS if getattr(args, name) is not None}
    return {**served_options(args.model, given, ServeArgs), **adapters, "adapter_roots": args.adapter_root}


def adapters_by_name(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Returns name -> path. Raises ValueError for a name that is given twice: one of its paths would be lost."""
    adapters = dict(pairs)
    if len(adapters) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"each name of an adapter may be given once, but is given twice: {', '.join(twice)}")
    return adapters


def run(args: argparse.Namespace, parser: argparse.ArgumentParser, api_key: str = "") -> int:
    """api_key: that of the environment, "" if it has none."""
    from ..logs import set_up

    set_up(args.log_format, args.log_level)
    if "model" not in args:
        parser.error("the following arguments are required: MODEL")
    try:
        adapters = adapters_by_name([*args.adapter, *args.lora_modules])
        options = {"adapters": adapters, **engine_options(args)}
    except ValueError as error:
        parser.error(str(error))
    return _serve(args, options, api_key)


def _serve(args: argparse.Namespace, options: dict[str, Any], api_key: str) -> int:
    from ..async_llm import AsyncLLM
    from ..errors import AdapterError, EngineStartError
    from ..server.server import serve
    from ..server.times import ServerTimes
    from .telemetry_command import told_by

    async def serve_model() -> int:
        who = access(args, api_key)
        llm = AsyncLLM(args.model, **SERVED_BY_DEFAULT | options)
        times = ServerTimes(**given_times(args))
        async with told_by(llm, args, who) as telling:

            def announce(addresses: str) -> None:
                print("\n".join([f"blora is serving {args.model} on {addresses}", *telling.lines]), flush=True)

            leave = partial(_leave, telling.flush)
            return await serve(llm, args.host, args.port, announce, times, leave, who, http_options(args))

    try:
        return asyncio.run(serve_model())
    except (EngineStartError, AdapterError, OSError, ValueError) as error:
        return fail(str(error))


def _leave(flush: Callable[[], None], status: int) -> None:
    """Ends the process here, with its connections open: see `serve`. All children have ended."""
    flush()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
