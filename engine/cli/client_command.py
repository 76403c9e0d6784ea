"""`blora client`: sends requests to a server and prints its answers. Uses only blora.proto, and needs no engine."""

import argparse

from blora.proto.client import Adapter, Client, Prompt

from . import terminal


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. args: those of the command `client` in main.py."""
    return terminal.guarded(lambda: _generate(args))


def _generate(args: argparse.Namespace) -> int:
    prompt: Prompt = [{"role": "user", "content": args.prompt}] if args.chat else args.prompt
    sampling = {"max_tokens": args.max_tokens, "temperature": args.temperature, "seed": args.seed}
    with (
        Client(args.target) as client,
        client.generate_stream(prompt, _adapter(args.adapter), **sampling) as stream,
    ):
        for sample in stream:
            print(sample.text, end="", flush=True)
    print()
    return 0


def _adapter(uses: list[tuple[str, float]]) -> Adapter:
    match uses:
        case []:
            return None
        case [(name, 1.0)]:
            return name
    return dict(uses)
