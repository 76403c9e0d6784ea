"""D1: clients that are killed in the middle of a stream leave nothing behind, and their memory is free at once."""

import os
import signal
import time
from collections.abc import Iterator

from blora.bench.load.summary import percentile

from ..client_farm import Farm, farm
from ..gates import Check, at_most, equal, gate, none_of
from ..room import Room, Server

CLIENTS = 1000
AT_ONCE = 10
RELEASE_MS = 50.0
STEP_MS = 10.0  # more than a step of ten rows of the tiny model takes


@gate(
    "D1",
    "clients",
    "1,000 clients are killed by SIGKILL in mid-stream",
    "0 requests, pages and files left 1 s after the last; memory free within a step and 50 ms (p99)",
)
def killed_clients(room: Room) -> Iterator[Check]:
    adapters = room.adapters(4)
    with room.server(room.tiny, "--memory", "32MB", adapters=adapters) as server, farm(server.address) as clients:
        _round(room, clients, server, list(adapters))  # warms up
        num_files = server.facts.num_files()
        rounds = room.scaled(CLIENTS // AT_ONCE, least=3)
        seconds = sorted(_round(room, clients, server, list(adapters)) for _ in range(rounds))
        yield at_most("release p99", percentile(seconds, 99) * 1e3, RELEASE_MS + STEP_MS, "ms")
        time.sleep(1)
        info = server.client.info()
        yield equal("requests left", info.num_running + info.num_waiting, 0)
        yield equal("pages left", info.num_pages - info.num_free_pages, 0)
        yield at_most("files left", server.facts.num_files() - num_files, 2)
        yield none_of("errors in the log", server.log("CRITICAL", "ERROR"), rounds * AT_ONCE)


def _round(room: Room, clients: Farm, server: Server, adapters: list[str]) -> float:
    """Kills clients at once; returns the seconds until the server has everything back."""
    requests = [
        {
            "prompt": [room.rng.randrange(250) for _ in range(room.rng.randint(1, 200))],
            "adapter": room.rng.choice([None, *adapters]),
            "num_messages": room.rng.choice([0, 1, 1, 5, 20]),
            "n": room.rng.choice([1, 1, 3]),
            "max_tokens": 3500,
            "ignore_eos": True,
        }
        for _ in range(AT_ONCE)
    ]
    pids = clients.start(requests)
    killed = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    while (info := server.client.info()).num_running + info.num_waiting:
        if time.monotonic() - killed > 30:
            break
    return time.monotonic() - killed
