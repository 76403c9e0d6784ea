"""Served: what the generator has to know of the server before it plans: its model, and the size of its vocabulary."""

import argparse
import asyncio
import json
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

import grpc

from blora.proto.client import Client

from ..load import Load, Planned, Record, TargetSpec
from ..load.record import OK
from ..load.summary import REFUSED

PORTS = {"blora": 50051, "openai": 8000, "openai-chat": 8000}
LOOK_SECONDS = 10.0  # for a question to the server
PAUSE_SECONDS = 1.0  # between two tries of the check


@dataclass(frozen=True, slots=True)
class Served:
    spec: TargetSpec
    model: str

    def vocab_size(self) -> int:
        """Raises ValueError where the server does not say it."""
        if self.spec.backend == "blora":
            try:
                with Client(self.spec.address, timeout=LOOK_SECONDS) as client:
                    return client.info().vocab_size
            except grpc.RpcError as error:
                raise OSError(f"the server at {self.spec.address} does not answer: {error.details()}") from None
        if self.spec.backend == "in-process":
            from blora.engine.model_files.hub import resolve_model
            from blora.engine.model_files.read_config import load_model_config

            return load_model_config(resolve_model(self.spec.address, None)).vocab_size
        raise ValueError("a server of HTTP does not say how many tokens its vocabulary has; give --vocab-size")

    async def wait(self, seconds: float) -> None:
        """Asks a short request until it is answered, or refused for too much load. Raises OSError where it is not,
        `seconds` after the first try."""
        end = time.monotonic() + seconds
        prompt: Any = "Hello" if self.spec.backend == "openai-chat" else [1]
        planned = Planned(seconds=0.0, prompt=prompt, max_tokens=1)
        if self.spec.backend == "in-process":
            return
        while True:
            async with self.spec.open() as target:
                (record,) = await Load([planned], target).run()
            if record.status in (OK, REFUSED):
                return
            if time.monotonic() > end:
                raise OSError(f"the server at {self.spec.address} does not answer: {_failure(record)}")
            await asyncio.sleep(PAUSE_SECONDS)


def _failure(record: Record) -> str:
    return f"{record.status}: {record.details}"


def look_at(args: argparse.Namespace) -> Served:
    """Raises OSError where the server cannot be asked, ValueError for options that do not go together."""
    if args.backend == "in-process":
        if args.model is None:
            raise ValueError("--backend in-process needs --model, the folder of the model")
        spec = TargetSpec(backend=args.backend, address=args.model)
        return Served(spec, args.model)
    address = _address(args)
    is_http = args.backend != "blora"
    model = args.model or (_first_model(address) if is_http else "")
    spec = TargetSpec(
        backend=args.backend,
        address=address,
        model=model,
        endpoint=args.endpoint,
        connections=args.connections,
        extra_body=args.extra_body,
    )
    return Served(spec, model or address)


def _address(args: argparse.Namespace) -> str:
    if args.base_url is not None:
        return str(args.base_url)
    host = f"{args.host}:{args.port or PORTS[args.backend]}"
    return host if args.backend == "blora" else f"http://{host}"


def _first_model(url: str) -> str:
    """The name under which the server has its base model."""
    with urllib.request.urlopen(f"{url.rstrip('/')}/v1/models", timeout=LOOK_SECONDS) as response:
        return str(json.load(response)["data"][0]["id"])
