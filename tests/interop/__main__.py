"""Runs other people's programs against `blora serve`, and writes docs/interop.md. `make interop` starts it.

python -m interop                 all programs; the first time, it makes their environments, some 700 MB below .cache
python -m interop litellm         one of them
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import environments
from .page import write_page

ROOT = environments.ROOT
PROGRAMS = Path(__file__).parent / "programs"
MODEL_FOLDER = ROOT / ".cache/models/SmolLM2-135M-Instruct"
MODEL, ADAPTER = "smollm2", "commits"
SERVE = (
    *("--served-model-name", MODEL, "--adapter", f"{ADAPTER}={ROOT / 'bench/demo/adapters/commit-style'}"),
    *("--port", "0", "--http-port", "0", "--memory", "1GB", "--tool-call-parser", "hermes"),
    *("--max-queue-seconds", "300"),  # a load tester's burst is no overload here, however slow the machine is
)
TIMEOUT = 900.0  # seconds of a program


@dataclass(frozen=True)
class Address:
    grpc: str
    http: str


def in_python(program: str, address: Address) -> list[Any]:
    return [environments.python(), PROGRAMS / program, address.http, MODEL, ADAPTER]


def vllm_bench(address: Address) -> list[Any]:
    load = [address.http, MODEL, ADAPTER, MODEL_FOLDER, environments.vllm_rs()]
    return [sys.executable, PROGRAMS / "vllm_bench.py", *load]


def in_node(program: str, address: str) -> list[Any] | None:
    return None if environments.node_modules() is None else ["node", PROGRAMS / program, address, MODEL, ADAPTER]


# Name -> title, and the command, or None where the machine cannot run it.
CLIENTS: dict[str, tuple[str, Callable[[Address], list[Any] | None]]] = {
    "openai": (f"OpenAI's client, {environments.OPENAI}", partial(in_python, "openai_client.py")),
    "litellm": (f"LiteLLM, {environments.LITELLM}", partial(in_python, "litellm_client.py")),
    "langchain": (f"LangChain, {environments.LANGCHAIN}", partial(in_python, "langchain_client.py")),
    "vllm-bench": (f"The load tester `vllm-rs bench serve`, {environments.VLLM}", vllm_bench),
    "node-openai": (
        f"OpenAI's client in Node, {environments.OPENAI_JS}",
        lambda address: in_node("node_openai.cjs", address.http),
    ),
    "node-grpc": (
        f"Node over gRPC, by reflection, {environments.GRPC_JS}",
        lambda address: in_node("node_grpc.cjs", address.grpc),
    ),
}


@contextmanager
def served() -> Iterator[Address]:
    command = [sys.executable, "-m", "blora.engine.cli.main", "serve", str(MODEL_FOLDER), *SERVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r" on (\S+) and (http://\S+)", line)
            if found is None:
                raise RuntimeError(f"the server did not start: {line!r}")
            yield Address(found[1], found[2])
        finally:
            process.terminate()


def checks_of(command: Sequence[Any]) -> list[dict[str, Any]]:
    """Runs a program; returns what it found. One that ends with an error has a check that is not held."""
    variables = {"NODE_PATH": str(environments.NODE / "node_modules"), "PYTHONPATH": ""}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=TIMEOUT, env=os.environ | variables
    )
    checks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"what"')]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        checks.append({"what": "runs to its end", "seen": last[:200], "is_held": False})
    return checks


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="interop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", nargs="*", metavar="PROGRAM", help=f"of {', '.join(CLIENTS)} (default: all)")
    which = parser.parse_args(arguments).which or list(CLIENTS)
    unknown = set(which) - CLIENTS.keys()
    if unknown:
        parser.error(f"no program is named {', '.join(sorted(unknown))}; there are {', '.join(CLIENTS)}")
    results: dict[str, list[dict[str, Any]]] = {}
    with served() as address:
        for name in which:
            title, command_of = CLIENTS[name]
            command = command_of(address)
            if command is None:
                print(f"{title}: this machine has no such program")
                continue
            results[title] = checks_of(command)
            for check in results[title]:
                print(
                    f"{name}: {'held' if check['is_held'] else 'NOT HELD'}: {check['what']}: {check['seen']}",
                    flush=True,
                )
    write_page(results, [title for title, _ in CLIENTS.values()])
    return int(any(not check["is_held"] for checks in results.values() for check in checks))


if __name__ == "__main__":
    sys.exit(main())
