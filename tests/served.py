"""`blora serve` in its own process, and a client of it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blora.proto.client import Adapter, Client

OPTIONS = ["--port", "0", "--memory", "2MB", "--block-size", "4", "--threads", "1", "--max-num-batched-tokens", "64"]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
LONG: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "ignore_eos": True}


class Served:
    """A running server and a client of it."""

    def __init__(self, process: "subprocess.Popen[str]", address: str) -> None:
        self.process = process
        self.address = address
        self.client = Client(address, timeout=200)

    def settle(self) -> None:
        """Waits until the server, soon after its last request, has everything back."""
        deadline = time.monotonic() + 100
        while True:
            info = self.client.info()
            if info.num_running + info.num_waiting == 0 and info.num_free_pages == info.num_pages:
                return
            assert time.monotonic() < deadline, f"left behind: {info}"
            time.sleep(0.02)

    def wait_serving(self, is_serving: bool) -> None:
        wanted = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        service = "blora.v1.GenerationService"
        with grpc.insecure_channel(self.address) as channel:
            for answer in health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service=service), timeout=200
            ):
                if answer.status == wanted:
                    return

    def engine_pid(self) -> int:
        children = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "blora.engine.processes.engine"],
            capture_output=True,
            text=True,
        )
        return int(children.stdout.split()[0])


@contextmanager
def serving(
    model: Path, *options: str, stderr: IO[str] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """options: override OPTIONS. environment: added to this process's."""
    command = [sys.executable, "-m", "blora.engine.cli.main", "serve", str(model), *OPTIONS, *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ | (environment or {})
    ) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"is serving .* on (\S+)", process.stdout.readline())
            assert match is not None, "the server did not start"
            served = Served(process, match[1])
            yield served
            served.client.close()
        finally:
            if process.poll() is None:
                process.kill()


def tokens(server: Served, prompt: str, adapter: Adapter = None, **sampling: Any) -> list[int]:
    return list(server.client.generate(prompt, adapter, **GREEDY | sampling).samples[0].token_ids)


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()
