"""G2, G3: the engine dies under load, and for every request that is a pause: its stream goes on with the same
tokens."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator

from blora.bench.load import Load, Record

from ..gates import Check, at_most, equal, gate, none_of, shown
from ..health import watched
from ..measured_load import p
from ..mixed import mixed_plan
from ..room import Room, Server

ROUNDS = 100
RATE, SECONDS = 12.0, 2.0  # of the load of a round
SERVING_SECONDS = 10.0
NOTICED_MS = 250.0
OPTIONS = ("--memory", "48MB", "--max-num-seqs", "64")
WAYS_OF_DYING = ("raise", "exit", "abort", "segv")


@gate(
    "G2",
    "deaths",
    "the engine dies from inside 100 times under load: an error that belongs to no request, an exit, an abort, a wrong "
    "address",
    "every stream ends with the tokens that it has alone; health says NOT_SERVING within 250 ms (p99)",
)
def deaths_from_inside(room: Room) -> Iterator[Check]:
    def die(_: Server, number: int) -> None:
        room.order("die", WAYS_OF_DYING[number % len(WAYS_OF_DYING)])

    yield from _rounds(room, die, planted="deadly")


@gate(
    "G3",
    "deaths",
    "the engine is killed 100 times under load, one time in five with SIGSEGV, one in five again while it comes back",
    "every stream ends with the tokens that it has alone; SERVING again within 10 s; no process is left over",
)
def deaths_from_outside(room: Room) -> Iterator[Check]:
    def die(server: Server, number: int) -> None:
        os.kill(server.engine_pid(), signal.SIGSEGV if number % 5 == 0 else signal.SIGKILL)

    yield from _rounds(room, die, again=lambda number: number % 5 == 1)


def _rounds(
    room: Room,
    die: Callable[[Server, int], None],
    planted: str = "",
    again: Callable[[int], bool] = lambda _: False,
) -> Iterator[Check]:
    adapters = room.adapters(6)
    records: list[Record] = []
    noticed, served, gaps = list[float](), list[float](), list[float]()
    rounds = room.scaled(ROUNDS, least=2)
    with room.server(room.tiny, *OPTIONS, adapters=adapters, planted=planted) as server:
        num_children = len(server.facts.children())
        for number in range(rounds):

            async def kill(_: Load, number: int = number) -> None:
                async with watched(server.address) as health:
                    await asyncio.sleep(room.rng.uniform(0.5, SECONDS))
                    died = asyncio.get_running_loop().time()
                    die(server, number)
                    noticed.append(await health.wait(False, died))
                    served.append(await health.wait(True, died + noticed[-1]) + noticed[-1])
                    if again(number):
                        die(server, 1)
                        died = asyncio.get_running_loop().time()
                        await health.wait(True, died + await health.wait(False, died))

            load = room.drive(server, mixed_plan(room, list(adapters), RATE, SECONDS, deadline=60.0), kill)
            records += load.records
            gaps += [max(record.gaps) for record in load.records if record.gaps]
        server.settle()
        yield equal("processes left over", len(server.facts.children()) - num_children, 0)
        yield none_of("critical lines in the log", server.log("CRITICAL"), rounds)
    statuses = [f"{r.status}: {r.details}" for r in records if r.status != "OK"]
    yield none_of("requests that did not end well", statuses, len(records))
    compared = room.some(records, 1200)
    yield none_of("wrong answers", room.oracle(room.tiny, adapters).differences(compared), len(compared))
    yield at_most("NOT_SERVING after (p99)", p(noticed, 99) * 1e3, NOTICED_MS, "ms")
    yield at_most("SERVING again after", max(served), SERVING_SECONDS, "s")
    yield shown("longest gap in a stream", max(gaps), "s")
