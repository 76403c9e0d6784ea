"""The command line: `blora serve`, `client`, `adapters`, `info` and the commands that installed packages add.

Owns flags and exit statuses. Imports the engine and the server only for `serve`, so that the other commands work
without torch. Further commands are entry points of the group "blora.commands": modules with HELP,
`add_arguments(parser)` and `run(args)`.
"""

import argparse
import asyncio
import logging
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from blora.scheduler import POLICIES

from ..config import BACKENDS, KV_CACHE_DTYPES

OWN_COMMANDS = ("serve", "client", "adapters", "info")
ADAPTER_ACTIONS = {
    "list": "list all loaded adapters",
    "show": "show an adapter, its versions and the usage of its requests",
    "load": "load or replace an adapter from a folder of the server, or from the hub",
    "upload": "load or replace an adapter from a folder of this machine, and send its files",
    "activate": "make a name mean another kept version, such as the one before",
    "warm": "make an adapter resident; it may be evicted again",
    "pin": "make an adapter resident and keep it resident",
    "unpin": "let a pinned adapter be evicted again",
    "unload": "remove a name, or one of its versions",
    "watch": "list all loaded adapters, then print every change",
}
INSPECT = (
    "Checks an adapter without loading it. Prints the tensors applied, ranks, bytes and per-layer norms, or every "
    "problem found."
)
# Arguments of `serve` that are the server's own; all others are options of the engine.
SERVER_FLAGS = ("command", "model", "adapter", "adapter_root", "host", "port")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    # The modules of further commands are imported only to run one of them, or for a help text that lists them.
    further = {} if argv and argv[0] in OWN_COMMANDS else further_commands()
    parser = build_parser(further)
    args = parser.parse_args(argv)
    _add_tools()
    if args.command == "serve":
        return _serve(args, parser)
    if args.command == "client":
        return _client(args, parser)
    if args.command == "adapters":
        return _adapters(args)
    if args.command == "info":
        return _info(args)
    try:
        return int(further[args.command].run(args))
    except ModuleNotFoundError as error:
        return _fail(_missing(error, args.command))


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
    parser = argparse.ArgumentParser(prog="blora", description="Serves one base model and thousands of LoRA adapters.")
    parser.add_argument("--version", action="version", version=f"blora {version('blora')}")
    further = further or {}
    metavar = ",".join([*OWN_COMMANDS, *further])
    commands = parser.add_subparsers(dest="command", required=True, metavar=f"{{{metavar}}}")
    _add_serve(commands.add_parser("serve", help="serve a model over gRPC"))
    _add_client(commands.add_parser("client", help="send a prompt to a server and print the answer"))
    _add_adapters(commands.add_parser("adapters", help="check, load, list and unload adapters"))
    _add_target(commands.add_parser("info", help="show the limits, load and counters of a server's engine"))
    for name, module in further.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP))
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder, hub id or .gguf file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=50051, help="port; 0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--adapter",
        type=_named_path,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="adapter to load at start-up, from a folder or the hub; may be repeated",
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
        type=_size,
        metavar="SIZE",
        help="let clients upload adapters of at most SIZE each, such as 256M (default: no uploads)",
    )
    _add_engine_options(parser.add_argument_group("engine", "An option left out takes the engine's default."))


def _add_engine_options(group: Any) -> None:
    group.add_argument("--backend", choices=BACKENDS, help="kernels to use (default: auto, the first that works)")
    group.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="data type of the model, KV and adapters"
    )
    group.add_argument(
        "--kv-cache-dtype", choices=KV_CACHE_DTYPES, help="data type of KV alone; fp8 halves its bytes, on CUDA only"
    )
    group.add_argument(
        "--memory",
        type=_memory,
        metavar="SIZE",
        help="memory for KV and adapters: bytes, a size such as 2GiB or 512M, or a fraction of free memory such as 0.5",
    )
    group.add_argument(
        "--host-cache",
        type=_memory,
        metavar="SIZE",
        help="host memory for idle adapters, given as --memory is; adapters beyond it are read again when needed",
    )
    group.add_argument("--block-size", type=_count, metavar="TOKENS", help="tokens in a block of the KV cache")
    group.add_argument("--max-model-len", type=_count, metavar="TOKENS", help="tokens of prompt and output together")
    group.add_argument("--max-num-seqs", type=_count, metavar="N", help="requests that run at once")
    group.add_argument("--max-num-batched-tokens", type=_count, metavar="TOKENS", help="tokens in one step")
    group.add_argument(
        "--max-num-queued-reqs", type=_count, metavar="N", help="unfinished requests; the server refuses more"
    )
    group.add_argument(
        "--max-adapter-versions",
        type=_count,
        metavar="N",
        help="versions to keep under each name, the active one included",
    )
    group.add_argument(
        "--scheduling-policy",
        choices=POLICIES,
        help="order of requests: fair, by priority and then fair shares; fcfs, by arrival; priority (default: fair)",
    )
    group.add_argument(
        "--tenant-weights",
        type=_weights,
        metavar="NAME=W,...",
        help="weights of tenants in fair shares; a request's metadata x-tenant-id names its tenant (default: 1 each)",
    )
    group.add_argument(
        "--adapter-weights",
        type=_weights,
        metavar="NAME=W,...",
        help="weights of adapters within their tenant's share (default: 1 each)",
    )
    group.add_argument(
        "--max-passed-over",
        type=_count,
        metavar="TOKENS",
        help="starvation bound: a waiting request goes first once others have received this many tokens",
    )
    group.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        help="share the KV of equal prefixes between requests (default: yes)",
    )
    group.add_argument("--enforce-eager", action="store_true", default=None, help="capture no CUDA graphs")
    group.add_argument("--seed", type=int, help="seed of requests without one")
    group.add_argument(
        "--tensor-parallel-size",
        type=_count,
        metavar="N",
        help="processes that share the model; each computes a part of it",
    )
    group.add_argument("--threads", type=_count, metavar="N", help="compute threads of all processes together")
    group.add_argument("--revision", help="revision of a model from the hub")
    group.add_argument(
        "--generation-config",
        choices=("auto", "vllm"),
        help="sampling defaults: those of the model's generation_config.json, or vLLM's neutral ones (default: auto)",
    )


def _add_client(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue")
    _add_target(parser)
    parser.add_argument(
        "--adapter",
        type=_scaled_name,
        action="append",
        default=[],
        metavar="NAME[=SCALE]",
        help="adapter to use; may be repeated, and the changes of all are summed (default: the base model)",
    )
    parser.add_argument("--chat", action="store_true", help="send PROMPT as a user's message in a conversation")
    parser.add_argument(
        "--max-tokens", type=_count, default=256, metavar="N", help="tokens to generate at most (default: %(default)s)"
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: the model's own value)")
    parser.add_argument("--seed", type=int, help="seed of the random draws (default: the server's)")


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", default="127.0.0.1:50051", metavar="HOST:PORT", help="server to ask (default: %(default)s)"
    )


def _add_adapters(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_inspect(actions.add_parser("inspect", help="check an adapter without loading it", description=INSPECT))
    for action, text in ADAPTER_ACTIONS.items():
        _add_action(actions.add_parser(action, help=text), action)


def _add_action(asking: argparse.ArgumentParser, action: str) -> None:
    _add_target(asking)
    if action not in ("list", "watch"):
        is_new = action in ("load", "upload")
        help_text = "name that requests will use" if is_new else "name of the adapter, or NAME@VERSION"
        asking.add_argument("name", metavar="NAME", help=help_text)
    match action:
        case "load":
            asking.add_argument("path", metavar="PATH", help="PEFT folder as the server sees it, or a hub id")
            _add_pin(asking)
        case "upload":
            asking.add_argument("folder", metavar="FOLDER", help="PEFT folder of this machine")
            _add_pin(asking)
        case "activate":
            asking.add_argument("version", type=_count, metavar="VERSION", help="number of the version")
        case "unload":
            asking.add_argument("--abort", action="store_true", help="end its requests instead of waiting for them")


def _add_pin(asking: argparse.ArgumentParser) -> None:
    asking.add_argument("--pin", action="store_true", help="make the adapter resident and keep it resident")


def _add_inspect(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("path", metavar="PATH", help="PEFT folder, or with --model a hub id")
    place = inspect.add_mutually_exclusive_group(required=True)
    place.add_argument("--model", help="model to check against, without a server: folder, hub id or .gguf file")
    place.add_argument("--target", metavar="HOST:PORT", help="server to ask; PATH is on the server")
    inspect.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="data type of the engine, with --model (default: %(default)s)",
    )
    inspect.add_argument(
        "--block-size",
        type=_count,
        default=16,
        metavar="TOKENS",
        help="block size of the engine, with --model (default: %(default)s)",
    )
    inspect.add_argument("--json", action="store_true", help="print the whole report as JSON")


def _named_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path


def _scaled_name(text: str) -> tuple[str, float]:
    name, equals, scale = text.partition("=")
    try:
        return name, float(scale) if equals else 1.0
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME=SCALE") from None


def _weights(text: str) -> dict[str, float]:
    weights = {}
    for part in text.split(","):
        name, weight = _named_path(part)
        try:
            weights[name] = float(weight)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{weight!r} is not a number") from None
    return weights


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _memory(text: str) -> str:
    """Checks a size. The engine turns it into bytes at start-up, but a mistake is an error of the command line."""
    from ..memory.budget import parse_memory

    try:
        parse_memory(text, usable=1 << 40)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _size(text: str) -> int:
    from ..memory.budget import parse_memory

    try:
        size = parse_memory(text, usable=0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not size:
        raise argparse.ArgumentTypeError(f"{text!r} is a fraction; give a size such as 256M")
    return size


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the keyword arguments of AsyncLLM: the options given, and the adapter roots."""
    given = {name: value for name, value in vars(args).items() if name not in SERVER_FLAGS and value is not None}
    return {**given, "adapter_roots": args.adapter_root}


def adapters_by_name(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Returns name -> path. Raises ValueError for a name that is given twice: one of its paths would be lost."""
    adapters = dict(pairs)
    if len(adapters) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"--adapter: each name may be given once, but is given twice: {', '.join(twice)}")
    return adapters


def _serve(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        adapters = adapters_by_name(args.adapter)
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return _run(args, adapters)
    except ModuleNotFoundError as error:
        return _fail(_missing(error, "a server"))


def _run(args: argparse.Namespace, adapters: dict[str, str]) -> int:
    from ..async_llm import AsyncLLM
    from ..errors import AdapterError, EngineStartError
    from ..server.server import serve

    def announce(address: str) -> None:
        print(f"blora is serving {args.model} on {address}", flush=True)

    async def run() -> int:
        llm = AsyncLLM(args.model, adapters=adapters, **engine_options(args))
        return await serve(llm, args.host, args.port, announce)

    try:
        return asyncio.run(run())
    except (EngineStartError, AdapterError, OSError, ValueError) as error:
        return _fail(str(error))


def _missing(error: ModuleNotFoundError, purpose: str) -> str:
    return f"the module {error.name} is missing; {purpose} needs, in a checkout of blora: pip install '.[engine]'"


def _fail(reason: str) -> int:
    print(f"blora: {reason}", file=sys.stderr)
    return 1


def _adapters(args: argparse.Namespace) -> int:
    from . import adapters_command

    try:
        return adapters_command.run(args)
    except ModuleNotFoundError as error:
        return _fail(_missing(error, "--model"))


def _client(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from . import client_command

    if len(dict(args.adapter)) < len(args.adapter):
        parser.error("--adapter: each adapter may be given once, but one is given twice")
    return client_command.run(args)


def _info(args: argparse.Namespace) -> int:
    from . import info_command

    return info_command.run(args)


if __name__ == "__main__":
    sys.exit(main())
