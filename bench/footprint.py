"""Footprint: seconds until a server serves, and the memory of its processes.

Memory is measured at the start and while thousands of short requests pass through the server, some of which are
cancelled. It is the part of a process that is in RAM, shared libraries included. The engine may take its weights, its
arena, a tenth of both and ALLOWED_BYTES. Growth is counted from a fifth of the requests, when caches are full, to the
end.
"""

import argparse
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blora.engine.memory.budget import parse_memory
from blora.engine.model_files.hub import resolve_model
from blora.engine.model_files.read_config import load_model_config
from blora.proto.client import Client

from . import machine
from .random_adapters import ALL_MODULES, make_adapters
from .table import Cell, format_table, write_json

ENGINE = "blora.engine.processes.engine"
ALLOWED_BYTES = 350 << 20  # allowed for the engine beside weights and arena
FRONT_END_BYTES = 150 << 20  # allowed for the front end
CONCURRENCY = 32  # requests at once
SAMPLES = 10  # measurements of the memory, over all requests
SETTLED = 2  # samples until caches are full
CANCELLED = 20  # one request in so many is cancelled
BATCH = 250  # the most requests sent before the client waits for all of them
RANK = 8
MIB = 1 << 20


def run(args: argparse.Namespace) -> int:
    folder = resolve_model(args.model, None)
    config = load_model_config(folder)
    adapters = make_adapters(
        folder, args.adapter_folder / f"{folder.name}-all-{RANK}", args.adapters, (RANK,), ALL_MODULES
    )
    starts = []
    for _ in range(args.starts - 1):
        with serving(folder, args.memory, adapters) as server:
            starts.append(server.start_seconds)
    with serving(folder, args.memory, adapters) as server:
        starts.append(server.start_seconds)
        samples = list(pass_requests(server, args.requests, config.vocab_size, [path.name for path in adapters]))
    report = {
        "kind": "footprint",
        **machine.describe(),
        "model": folder.name,
        "start_seconds": starts,
        "weight_bytes": config.num_parameters * 2,
        "arena_bytes": parse_memory(args.memory, 0),
        "samples": samples,
    }
    print(format_report(report))
    if args.json is not None:
        write_json(args.json, report)
    return 0


class Server:
    """A process of `blora serve`, as a user runs it."""

    def __init__(self, process: "subprocess.Popen[str]", addresses: Sequence[str], start_seconds: float) -> None:
        self.process = process
        self.addresses = addresses  # of gRPC, and of HTTP where it is served
        self.address = addresses[0]
        self.start_seconds = start_seconds  # seconds until it printed that it serves

    def memory(self) -> dict[str, int]:
        """Returns the bytes in RAM of the front end and of the engine."""
        children = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", ENGINE], capture_output=True, text=True, check=True
        )
        engine = int(children.stdout.split()[0])
        return {"front_end": resident_bytes(self.process.pid), "engine": resident_bytes(engine)}


@contextmanager
def serving(model: Path, memory: str, adapters: Sequence[Path], options: Sequence[str] = ()) -> Iterator[Server]:
    """options: further flags."""
    command = [sys.executable, "-m", "blora.engine.cli.main", "serve", str(model), "--port", "0", "--memory", memory]
    command += [*(f"--adapter={path.name}={path}" for path in adapters), *options]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            match = re.search(r"is serving .* on (\S+(?: and \S+)*)$", line)
            if match is None:
                raise OSError(f"the server did not start: {line!r}")
            yield Server(process, match[1].split(" and "), time.monotonic() - started)
        finally:
            process.send_signal(signal.SIGTERM)


def resident_bytes(pid: int) -> int:
    match = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"process {pid} has ended")
    return int(match[1]) * 1024


def pass_requests(
    server: Server, num_requests: int, vocab_size: int, adapters: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Sends short requests of random tokens to the adapters and the base model, in turn. Yields the memory at the start
    and after each of SAMPLES parts of the requests."""
    names = [None, *adapters]

    def ask(index: int) -> None:
        rng = random.Random(index)
        prompt = [rng.randrange(vocab_size) for _ in range(rng.randint(4, 64))]
        options: dict[str, Any] = {"max_tokens": rng.randint(1, 12), "ignore_eos": True, "temperature": 0.0}
        name = names[index % len(names)]
        if index % CANCELLED:
            client.generate(prompt, name, **options)
        else:
            with client.generate_stream(prompt, name, **options) as stream:
                next(iter(stream))

    with Client(server.address, timeout=120) as client, ThreadPoolExecutor(CONCURRENCY) as pool:
        yield {"requests": 0, **server.memory()}
        for sample in range(SAMPLES):
            first, last = (num_requests * index // SAMPLES for index in (sample, sample + 1))
            for start in range(first, last, BATCH):
                list(pool.map(ask, range(start, min(start + BATCH, last))))
            print(f"{last} of {num_requests} requests", file=sys.stderr, flush=True)
            yield {"requests": last, **server.memory()}


def format_report(report: dict[str, Any]) -> str:
    samples = report["samples"]
    rows: list[list[Cell]] = [
        [f"{sample['requests']:,}", sample["front_end"] / MIB, sample["engine"] / MIB] for sample in samples
    ]
    settled, last = samples[SETTLED], samples[-1]
    growth = ", ".join(
        f"{name.replace('_', ' ')} {(last[name] - settled[name]) / MIB:+.1f}" for name in ("front_end", "engine")
    )
    weights, arena = report["weight_bytes"], report["arena_bytes"]
    allowed = 1.1 * (weights + arena) + ALLOWED_BYTES
    return "\n".join(
        [
            machine.summary(report),
            f"{report['model']} serves after {statistics.median(report['start_seconds']):.1f} s (median of starts)",
            "",
            format_table(["requests", "front end MiB", "engine MiB"], rows),
            "",
            f"weights {weights / MIB:.0f} MiB, arena {arena / MIB:.0f} MiB; allowed: front end"
            f" {FRONT_END_BYTES / MIB:.0f} MiB, engine {allowed / MIB:.0f} MiB",
            f"growth since {settled['requests']:,} requests, MiB: {growth}",
        ]
    )
