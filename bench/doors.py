"""`blora bench doors`: the throughput of streams in process, over gRPC and over HTTP, on the same work.

The server is a process of its own, so that this one is only the generator of the load, and the reader of the answers:
it reads bytes and looks into none. In process, the streams are read where the front end runs. All streams begin at
once, and end at the same token; passes take turns, so that all see the same machine.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from blora.engine import AsyncLLM, SamplingParams
from blora.proto.v1 import generation_pb2

from . import machine
from .footprint import Server, serving
from .load.targets.blora import METHOD
from .table import Cell, format_table, write_json

Prompts = Sequence[Sequence[int]]
Door = Callable[[Prompts, int], Awaitable[None]]  # asks for so many tokens of each prompt, and reads all
PATIENT = ("--max-queue-seconds", "3600")  # a slow machine is measured, too
WANTED = {"grpc": 0.9, "http": 0.85}  # of the throughput in process


def run(args: argparse.Namespace) -> int:
    flags = ["--http-port", "0", *PATIENT, *([] if args.threads is None else ["--threads", str(args.threads)])]
    with serving(args.model, args.memory, (), flags) as server:
        passes = asyncio.run(_measure(args, server))
    tokens = args.rows * args.output_len
    seconds = {name: [of_pass.seconds for of_pass in some] for name, some in passes.items()}
    cores = {name: [of_pass.core_seconds for of_pass in some] for name, some in passes.items()}
    report: dict[str, Any] = {
        "kind": "doors",
        **machine.describe(),
        "options": {name: str(value) for name, value in vars(args).items()},
        "seconds": seconds,
        "core_seconds": cores,  # of the front end; in process those of the generator, too
        "core_microseconds_per_token": {name: statistics.median(some) / tokens * 1e6 for name, some in cores.items()},
        "tokens_per_second": {name: tokens / statistics.median(times) for name, times in seconds.items()},
    }
    print(format_report(report))
    if args.json is not None:
        write_json(args.json, report)
    return 0


@dataclass(frozen=True, slots=True)
class Pass:
    seconds: float
    core_seconds: float  # of the process that the front end is in


async def _measure(args: argparse.Namespace, server: Server) -> dict[str, list[Pass]]:
    """Returns the measured passes, by door."""
    options = {} if args.threads is None else {"threads": args.threads}
    async with AsyncLLM(args.model, memory=args.memory, **options) as llm:
        vocab_size = (await llm.get_info()).vocab_size
        doors: dict[str, Door] = {
            "in process": InProcess(llm),
            "grpc": OverGrpc(server.addresses[0]),
            "http": OverHttp(server.addresses[1]),
        }
        passes: dict[str, list[Pass]] = {name: [] for name in doors}
        for number in range(args.warmups + args.rounds):
            prompts = _prompts(args, vocab_size, args.seed + number)
            for name, ask in doors.items():
                pid = os.getpid() if isinstance(ask, InProcess) else server.process.pid
                core, began = seconds_at_work(pid), time.monotonic()
                await ask(prompts, args.output_len)
                if number >= args.warmups:
                    passes[name].append(Pass(time.monotonic() - began, seconds_at_work(pid) - core))
        return passes


def seconds_at_work(pid: int) -> float:
    """Seconds for which the threads of a process had a core."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def _prompts(args: argparse.Namespace, vocab_size: int, seed: int) -> Prompts:
    draw = random.Random(seed)
    return [draw.choices(range(vocab_size), k=args.prompt_len) for _ in range(args.rows)]


class InProcess:
    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    async def __call__(self, prompts: Prompts, num_tokens: int) -> None:
        await asyncio.gather(*(self._read(prompt, num_tokens) for prompt in prompts))

    async def _read(self, prompt: Sequence[int], num_tokens: int) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        async for _ in self._llm.generate({"prompt_token_ids": list(prompt)}, sampling):
            pass


class OverGrpc:
    """All streams share one connection, as those of a service do."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def __call__(self, prompts: Prompts, num_tokens: int) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            method = channel.unary_stream(METHOD)
            await asyncio.gather(*(_read_messages(method(_message(prompt, num_tokens))) for prompt in prompts))


async def _read_messages(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def _message(prompt: Sequence[int], num_tokens: int) -> bytes:
    sampling = generation_pb2.SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    request = generation_pb2.GenerateRequest(token_ids=generation_pb2.TokenIds(ids=prompt), sampling=sampling)
    return generation_pb2.GenerateStreamRequest(request=request).SerializeToString()


class OverHttp:
    """Each stream has a connection, as HTTP/1.1 has it."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.removeprefix("http://").rpartition(":")
        self._port = int(port)

    async def __call__(self, prompts: Prompts, num_tokens: int) -> None:
        await asyncio.gather(*(self._read(prompt, num_tokens) for prompt in prompts))

    async def _read(self, prompt: Sequence[int], num_tokens: int) -> None:
        sampling = {"temperature": 0, "max_tokens": num_tokens, "ignore_eos": True}
        body = json.dumps({"prompt": list(prompt), "stream": True, **sampling}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {self._host}\r\nconnection: close\r\n"
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        last = b""
        while part := await reader.read(1 << 16):
            last = (last + part)[-64:]
        writer.close()
        if b"data: [DONE]" not in last:
            raise OSError(f"a stream over HTTP was broken off: {last!r}")


def format_report(report: dict[str, Any]) -> str:
    speeds, seconds, cores = report["tokens_per_second"], report["seconds"], report["core_microseconds_per_token"]
    whole = speeds["in process"]
    rows: list[list[Cell]] = [
        [name, speed, min(seconds[name]), max(seconds[name]), cores[name], speed / whole, WANTED.get(name)]
        for name, speed in speeds.items()
    ]
    header = ["door", "tokens/s", "least s", "most s", "us/token", "of in process", "wanted"]
    return "\n".join([machine.summary(report), "", format_table(header, rows)])
