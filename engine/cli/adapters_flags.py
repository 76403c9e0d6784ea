"""The flags of `blora adapters`. What it does is in adapters_command, which is imported only to do it."""

import argparse
from pathlib import Path

from ..arguments.flag_types import count
from ..config import DTYPES
from .connection_flags import add_credentials, add_target

ACTIONS = {
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
SIGN = (
    "Writes a signature over the digest of an adapter's configuration, weights, tokens and chat template into "
    "adapter.sig, beside those of other keys. Servers with --adapter-signers ask for it. `openssl genpkey -algorithm "
    "ed25519` makes a key, `openssl pkey -in KEY -pubout` its public one."
)
INSPECT = (
    "Checks an adapter without loading it. Prints the tensors applied, ranks, bytes and per-layer norms, or every "
    "problem found."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_inspect(actions.add_parser("inspect", help="check an adapter without loading it", description=INSPECT))
    _add_sign(actions.add_parser("sign", help="sign an adapter's content", description=SIGN))
    for action, text in ACTIONS.items():
        _add_action(actions.add_parser(action, help=text), action)


def _add_action(asking: argparse.ArgumentParser, action: str) -> None:
    add_target(asking)
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
            asking.add_argument("version", type=count, metavar="VERSION", help="number of the version")
        case "unload":
            asking.add_argument("--abort", action="store_true", help="end its requests instead of waiting for them")


def _add_sign(sign: argparse.ArgumentParser) -> None:
    sign.add_argument("folder", metavar="FOLDER", help="PEFT folder of this machine")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key of Ed25519 in PEM")


def _add_pin(asking: argparse.ArgumentParser) -> None:
    asking.add_argument("--pin", action="store_true", help="make the adapter resident and keep it resident")


def _add_inspect(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("path", metavar="PATH", help="PEFT folder, or with --model a hub id")
    place = inspect.add_mutually_exclusive_group(required=True)
    place.add_argument("--model", help="model to check against, without a server: folder, hub id or .gguf file")
    place.add_argument("--target", metavar="HOST:PORT", help="server to ask; PATH is on the server")
    add_credentials(inspect.add_argument_group("connection", "For --target."))
    inspect.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="data type of the engine, with --model (default: %(default)s)",
    )
    inspect.add_argument(
        "--block-size",
        type=count,
        default=16,
        metavar="TOKENS",
        help="block size of the engine, with --model (default: %(default)s)",
    )
    inspect.add_argument("--json", action="store_true", help="print the whole report as JSON")
