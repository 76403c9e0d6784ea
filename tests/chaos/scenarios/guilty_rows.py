"""G1: a row that cannot be computed ends its own request, and nobody else's changes by a bit."""

from collections.abc import Iterator
from dataclasses import replace

from ..gates import Check, equal, gate, none_of
from ..mixed import mixed_plan
from ..room import Room

INJECTIONS = 200
RATE, GUILTY_RATE = 30.0, 5.0
OPTIONS = ("--memory", "32MB", "--max-queue-seconds", "600")  # more comes than two cores carry: full batches
GUILTY = {"temperature": 1.0, "seed": 666, "ignore_eos": True}


@gate(
    "G1",
    "failures",
    "200 rows, among thousands, make the computation of their step fail after three tokens",
    "only the guilty requests fail, with INTERNAL; all others end with the tokens that they have alone; the engine "
    "goes on",
)
def guilty_rows(room: Room) -> Iterator[Check]:
    adapters = room.adapters(4)
    with room.server(room.tiny, *OPTIONS, adapters=adapters, planted="guilty") as server:
        engine = server.engine_pid()
        seconds = room.scaled(INJECTIONS) / GUILTY_RATE
        innocent = mixed_plan(room, list(adapters), RATE, seconds)
        guilty = [
            replace(planned, sampling=GUILTY) for planned in mixed_plan(room, list(adapters), GUILTY_RATE, seconds)
        ]
        load = room.drive(server, sorted([*innocent, *guilty], key=lambda planned: planned.seconds))
        server.settle()
        yield equal("engines started again", int(server.engine_pid() != engine), 0)
        yield none_of("critical lines in the log", server.log("CRITICAL"), len(load.records))
    failed = [record for record in load.records if record.planned.sampling is GUILTY]
    others = [record for record in load.records if record.planned.sampling is not GUILTY]
    wrong = [f"{r.status}: {r.details}" for r in failed if r.status != "INTERNAL" or r.num_tokens != 3]
    yield none_of("guilty requests with another end", wrong, len(failed))
    yield none_of("others that failed", [f"{r.status}: {r.details}" for r in others if r.status != "OK"], len(others))
    yield none_of("wrong answers", room.oracle(room.tiny, adapters).differences(others), len(others))
