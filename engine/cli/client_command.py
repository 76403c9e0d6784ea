"""`blora client`: sends requests to a server and prints its answers. Uses only blora.proto, and needs no engine."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from blora.proto.client import Adapter, Client, Prompt

from . import terminal
from .connection_flags import open_client
from .sampling_flags import given_sampling


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. args: those of the command `client` in client_flags.py."""
    return terminal.guarded(lambda: _ask(args))


def _ask(args: argparse.Namespace) -> int:
    arguments: dict[str, Any] = {
        "request_id": args.request_id,
        "priority": args.priority,
        "cache_salt": args.cache_salt,
        **given_sampling(args),
    }
    prompt, adapter = _prompt(args), _adapter(args.adapter)
    with open_client(args, args.target, tenant=args.tenant, timeout=args.timeout) as client:
        if args.json:
            answer = client.generate(prompt, adapter, **arguments)
            print(json.dumps(asdict(answer), indent=2, ensure_ascii=False))
        else:
            _stream(client, prompt, adapter, arguments)
    return 0


def _stream(client: Client, prompt: Prompt, adapter: Adapter, arguments: dict[str, Any]) -> None:
    """Prints one sample as it comes; several one after another, when all are complete."""
    if arguments.get("n", 1) > 1:
        for sample in client.generate(prompt, adapter, **arguments).samples:
            print(f"[{sample.index}] {sample.text}")
        return
    with client.generate_stream(prompt, adapter, **arguments) as stream:
        for sample in stream:
            print(sample.text, end="", flush=True)
    print()


def _prompt(args: argparse.Namespace) -> Prompt:
    """Raises ValueError."""
    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not args.chat:
        if args.system is not None:
            raise ValueError("--system goes with --chat")
        return str(text)
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    return [*system, {"role": "user", "content": text}]


def _adapter(uses: list[tuple[str, float]]) -> Adapter:
    match uses:
        case []:
            return None
        case [(name, 1.0)]:
            return name
    return dict(uses)
