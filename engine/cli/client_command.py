"""`blora client`: sends requests to a server and prints its answers. Uses only blora.proto, and needs no engine."""

import argparse
import io
import os
import sys
from collections.abc import Callable

import grpc

from blora.proto.client import Adapter, Client, Prompt
from blora.proto.v1 import adapters_pb2

# The exit statuses that shells report for a program ended by SIGINT and by SIGPIPE.
INTERRUPTED = 130
BROKEN_PIPE = 141


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. args: those of the command `client` in main.py."""
    return guarded(lambda: _ask(args))


def _ask(args: argparse.Namespace) -> int:
    with Client(args.target) as client:
        _act(client, args)
    return 0


def guarded(act: Callable[[], int]) -> int:
    """Runs a command that talks to a server and prints; returns its exit status. Prints one line for an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal's encoding may lack a character
    try:
        return act()
    except grpc.RpcError as error:
        # An RPC's error is also its call, which knows the status.
        return _fail(f"{error.code().name}: {error.details()}")
    except ValueError as error:  # an argument that no message can hold
        return _fail(str(error))
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        _drop_output()
        return _fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED


def _fail(reason: str) -> int:
    print(f"blora: {reason}", file=sys.stderr)
    return 1


def _drop_output() -> None:
    """Discards the buffer of stdout. Python would otherwise write it again at exit and print an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _act(client: Client, args: argparse.Namespace) -> None:
    if args.list_adapters:
        for adapter in client.list_adapters():
            print(_described(adapter))
    elif args.load_adapter is not None:
        name, path = args.load_adapter
        print(_described(client.load_adapter(name, path)))
    elif args.upload_adapter is not None:
        name, path = args.upload_adapter
        print(_described(client.upload_adapter(name, path)))
    elif args.unload_adapter is not None:
        print(_described(client.unload_adapter(args.unload_adapter)))
    elif args.info:
        print(client.info(), end="")
    else:
        _generate(client, args)


def _described(adapter: adapters_pb2.Adapter) -> str:
    ranks = ",".join(map(str, adapter.ranks))
    state = "".join([", pinned" if adapter.pinned else "", ", resident" if adapter.resident else ""])
    use = f"{adapter.num_requests} requests, version {adapter.version}{state}"
    facts = f"rank {ranks}, {adapter.num_bytes} bytes, {use}"
    warnings = [f"warning: {warning}" for warning in adapter.warnings]
    return "\n  ".join([f"{adapter.name}  {adapter.digest[:12]}  {facts}", *warnings])


def _adapter(uses: list[tuple[str, float]]) -> Adapter:
    match uses:
        case []:
            return None
        case [(name, 1.0)]:
            return name
    return dict(uses)


def _generate(client: Client, args: argparse.Namespace) -> None:
    prompt: Prompt = [{"role": "user", "content": args.prompt}] if args.chat else args.prompt
    with client.generate_stream(
        prompt, _adapter(args.adapter), max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed
    ) as stream:
        for sample in stream:
            print(sample.text, end="", flush=True)
    print()
