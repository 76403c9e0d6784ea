"""`blora adapters`: inspects and manages adapters on a server, or inspects one without a server.

`main.py` declares its flags.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from blora.proto.client import Client

from . import terminal
from .connection_flags import open_client
from .printing import adapter_text, adapters_text, news_text, report_text


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 1 if the action fails or the inspected adapter is refused."""
    return terminal.guarded(lambda: _act(args))


def _act(args: argparse.Namespace) -> int:
    if args.action == "inspect":
        return _inspect_here(args) if args.target is None else _inspect_there(args)
    if args.action == "sign":
        return _sign(args)
    with open_client(args, args.target) as client:
        for line in _answers(client, args):
            print(line, flush=True)
    return 0


def _answers(client: Client, args: argparse.Namespace) -> Iterator[str]:
    match args.action:
        case "list":
            yield from adapters_text(client.list_adapters())
        case "watch":
            for news in client.watch_adapters():
                yield from news_text(news)
        case "show":
            yield adapter_text(client.get_adapter(args.name))
        case "load":
            yield adapter_text(client.load_adapter(args.name, args.path, pinned=args.pin))
        case "upload":
            yield adapter_text(client.upload_adapter(args.name, args.folder, pinned=args.pin))
        case "activate":
            yield adapter_text(client.activate_adapter(args.name, args.version))
        case "warm":
            yield adapter_text(client.warm_adapter(args.name))
        case "pin" | "unpin":
            yield adapter_text(client.pin_adapter(args.name, args.action == "pin"))
        case "unload":
            yield adapter_text(client.unload_adapter(args.name, abort=args.abort))


def _sign(args: argparse.Namespace) -> int:
    from ..adapter_store.signers import sign_folder

    print(f"{sign_folder(Path(args.folder), args.key)} is signed")
    return 0


def _inspect_here(args: argparse.Namespace) -> int:
    from ..adapter_store.inspection import inspect

    report = inspect(args.path, args.model, args.dtype, args.block_size)
    shown = {name: value for name, value in asdict(report).items() if name != "text"}
    print(json.dumps(shown, indent=2) if args.json else report_text(report))
    return 1 if report.problems else 0


def _inspect_there(args: argparse.Namespace) -> int:
    with open_client(args, args.target) as client:
        report = client.inspect_adapter(args.path)
    print(json.dumps(asdict(report), indent=2) if args.json else report_text(report))
    return 1 if report.problems else 0
