"""G4: an engine that stands still is found, replaced, and its requests go on."""

import asyncio
import os
import signal
from collections.abc import Iterator

from blora.bench.load import Load, Record

from ..gates import Check, at_most, equal, gate, none_of, shown
from ..health import watched
from ..mixed import mixed_plan
from ..room import Room, Server

ROUNDS = 20
NOTICED_SECONDS = 10.0  # twice the 5 s after which an engine without progress stands
QUIET_SECONDS = 60.0  # of full load in which nothing may be noticed; the soak adds half an hour
RATE, SECONDS = 6.0, 2.0


@gate(
    "G4",
    "failures",
    "the engine stands still 20 times under load: stopped by SIGSTOP, or asleep in a step",
    "health says NOT_SERVING within 10 s, another engine serves, every stream ends with the tokens that it has alone; "
    "no false alarm under full load",
)
def standing_engine(room: Room) -> Iterator[Check]:
    adapters = room.adapters(4)
    records: list[Record] = []
    noticed: list[float] = []
    options = ("--memory", "48MB", "--max-num-seqs", "64")
    with room.server(room.tiny, *options, adapters=adapters, planted="deadly") as server:
        first = server.engine_pid()
        full = mixed_plan(room, list(adapters), 60.0, room.seconds(QUIET_SECONDS), output_len=(200, 400))
        room.drive(server, full)
        yield equal("false alarms", int(server.engine_pid() != first), 0)
        for number in range(room.scaled(ROUNDS)):

            async def stand(_: Load, number: int = number) -> None:
                async with watched(server.address) as health:
                    await asyncio.sleep(room.rng.uniform(0.3, SECONDS))
                    stopped = asyncio.get_running_loop().time()
                    _stop(room, server, asleep=bool(number % 2))
                    noticed.append(await health.wait(False, stopped))
                    await health.wait(True, stopped + noticed[-1])

            plan = mixed_plan(room, list(adapters), RATE, SECONDS + 2, output_len=(100, 600), deadline=90.0)
            records += room.drive(server, plan, stand).records
        server.settle()
    yield at_most("NOT_SERVING after", max(noticed), NOTICED_SECONDS, "s")
    statuses = [f"{r.status}: {r.details}" for r in records if r.status != "OK"]
    yield none_of("requests that did not end well", statuses, len(records))
    compared = room.some(records, 300)
    yield none_of("wrong answers", room.oracle(room.tiny, adapters).differences(compared), len(compared))
    yield shown("longest gap in a stream", max(gap for record in records for gap in record.gaps), "s")


def _stop(room: Room, server: Server, asleep: bool) -> None:
    if asleep:
        room.order("die", "stand")
    else:
        os.kill(server.engine_pid(), signal.SIGSTOP)
