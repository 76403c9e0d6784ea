"""D2: clients that cancel, reset or run out of time at any moment get the right status and leave nothing behind."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from blora.bench.load import Planned

from ..gates import Check, equal, gate, none_of, shown
from ..mixed import mixed_plan
from ..room import Room

REQUESTS = 5000
RATE = 40.0
ALLOWED = {
    "cancel": {"OK", "CANCELLED"},
    "reset": {"OK", "CANCELLED"},
    "deadline": {"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"},
}


@gate(
    "D2",
    "clients",
    "5,000 requests are cancelled, or their deadline passes, at random moments: before, between and after tokens",
    "status exactly CANCELLED, DEADLINE_EXCEEDED or OK (RESOURCE_EXHAUSTED where the deadline cannot be met); nothing "
    "left; what was answered is the beginning of the answer alone",
)
def leaving_clients(room: Room) -> Iterator[Check]:
    adapters = room.adapters(4)
    with room.server(room.tiny, "--memory", "32MB", adapters=adapters) as server:
        server.client.generate([1], max_tokens=1)
        num_files = server.facts.num_files()
        requests = mixed_plan(room, list(adapters), RATE, room.scaled(REQUESTS) / RATE, output_len=(20, 400))
        ways = [room.rng.choice(list(ALLOWED)) for _ in requests]
        plan = [_leaving(room, planned, way) for planned, way in zip(requests, ways, strict=True)]
        records = room.drive(server, plan).records
        server.settle()
        yield equal("pages left", (info := server.client.info()).num_pages - info.num_free_pages, 0)
        yield equal("files left", max(server.facts.num_files() - num_files - 4, 0), 0)  # 4 connections of the load
        yield none_of("errors in the log", server.log("CRITICAL", "ERROR"), len(records))
    wrong = [
        f"{way}: {r.status} {r.details}" for r, way in zip(records, ways, strict=True) if r.status not in ALLOWED[way]
    ]
    yield none_of("wrong statuses", wrong, len(records))
    yield none_of("wrong answers", room.oracle(room.tiny, adapters).differences(records), len(records))
    for status, count in sorted(Counter(record.status for record in records).items()):
        yield shown(status, count)


def _leaving(room: Room, planned: Planned, way: str) -> Planned:
    seconds = room.rng.choice([0.0, 0.001, room.rng.expovariate(20.0), room.rng.expovariate(2.0)])
    if way == "cancel":
        return replace(planned, cancel_seconds=seconds)
    if way == "reset":
        return replace(planned, cancel_after=room.rng.choice([0, 1, 2, room.rng.randint(1, 300)]))
    return replace(planned, deadline=seconds + 0.001)
