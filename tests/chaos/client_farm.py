"""Clients that can be killed: `python -m chaos.client_farm ADDRESS` reads one JSON object a line, forks a client that
sends its request, and prints the client's process id once it has read as many messages as asked for.

A fork is a hundred times as cheap as the start of a Python process. gRPC's threads do not survive one, so the farm
itself opens no channel.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blora.proto.client import Client


class Farm:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None and process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout

    def start(self, requests: Sequence[Mapping[str, Any]]) -> list[int]:
        """Starts clients; returns their process ids once all are where they should be killed."""
        for request in requests:
            self._orders.write(json.dumps(request) + "\n")
        self._orders.flush()
        return [int(self._answers.readline()) for _ in requests]


@contextmanager
def farm(address: str) -> Iterator[Farm]:
    command = [sys.executable, "-m", "chaos.client_farm", address]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as process:
        yield Farm(process)
        process.kill()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the clients
    for line in sys.stdin:
        if not os.fork():
            _ask(sys.argv[1], **json.loads(line))
            os._exit(0)


def _ask(address: str, num_messages: int, **request: Any) -> None:
    with Client(address).generate_stream(**request) as stream:
        samples = iter(stream)
        for _ in range(num_messages):
            next(samples)
        os.write(1, f"{os.getpid()}\n".encode())
        time.sleep(600)


if __name__ == "__main__":
    main()
