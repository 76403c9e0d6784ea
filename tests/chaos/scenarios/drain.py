"""G5: SIGTERM under load loses no accepted request, whatever stands still, and a second signal ends at once."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc

from blora.bench.load import BloraTarget, Load, Planned, Record

from ..gates import Check, at_most, gate, none_of, shown
from ..health import watched
from ..mixed import GREEDY, mixed_plan
from ..room import Room, Server

ROUNDS = 50
TIMEOUT = 4  # --shutdown-timeout, seconds
EXIT_SECONDS = TIMEOUT + 7.0
REFUSED_MS = 100.0
SECOND_SIGNAL_SECONDS = 1.0
RATE, SECONDS = 10.0, 1.5
OPTIONS = ("--memory", "48MB", "--max-num-seqs", "64", "--shutdown-timeout", str(TIMEOUT))
# A lost connection, which is what a client sees of a request that the server forgot.
LOST = ("Socket closed", "Connection reset", "recvmsg", "GOAWAY", "Broken pipe", "Stream removed")
# What else happens to the server in a round: nothing mostly.
KINDS = ("plain", "long", "plain", "readers that stand still", "plain", "standing engine", "plain", "second signal")
# Its answer fills every buffer on the way. It goes when the server has to be gone.
STANDING_READER = Planned(
    seconds=1.0,
    prompt=[1, 2, 3],
    max_tokens=3500,
    sampling={**GREEDY, "logprobs": 20},
    read_pause=3600.0,
    cancel_seconds=EXIT_SECONDS + 5,
)


@dataclass(slots=True)
class Drains:
    records: list[Record] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    exits: list[float] = field(default_factory=list)
    quick_exits: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@gate(
    "G5",
    "failures",
    "SIGTERM 50 times under load, also with readers that stand still, with a standing engine, with a second signal",
    "no accepted request is lost: it finishes or gets a status; health changes first, new requests get UNAVAILABLE "
    "within 100 ms; exit status 0 within --shutdown-timeout and 7 s; gone 1 s after a second signal",
)
def drain(room: Room) -> Iterator[Check]:
    adapters, drains = room.adapters(4), Drains()
    rounds = room.scaled(ROUNDS, least=len(KINDS))
    for number in range(rounds):
        with room.server(room.tiny, *OPTIONS, adapters=adapters) as server:
            kind = KINDS[number % len(KINDS)]
            print(f"  round {number}: {kind}", flush=True)
            _round(room, server, list(adapters), kind, drains)
    lost = [f"{r.status}: {r.details}" for r in drains.records if any(word in r.details for word in LOST)]
    yield none_of("accepted requests that were lost", lost, len(drains.records))
    yield none_of("faults", drains.faults, rounds)
    yield at_most("refused after", max(drains.refused) * 1e3, REFUSED_MS, "ms")
    yield at_most("exit after", max(drains.exits), EXIT_SECONDS, "s")
    yield at_most("exit after a second signal", max(drains.quick_exits), SECOND_SIGNAL_SECONDS, "s")
    finished = [record for record in drains.records if record.status == "OK"]
    yield shown("finished", len(finished) / len(drains.records), "%")
    compared = room.some([record for record in drains.records if record.num_tokens < 1000], 500)
    yield none_of("wrong answers", room.oracle(room.tiny, adapters).differences(compared), len(compared))


def _round(room: Room, server: Server, adapters: list[str], kind: str, drains: Drains) -> None:
    async def end(_: Load) -> None:
        async with watched(server.address) as health, BloraTarget(server.address) as target:
            await asyncio.sleep(room.rng.uniform(SECONDS, SECONDS + 0.2))
            engine = server.engine_pid()
            if kind == "standing engine":
                os.kill(engine, signal.SIGSTOP)
            asked = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            await health.wait(False, asked)
            drains.refused.append(await _refusal(target, drains))
            if kind == "second signal":
                asked = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(server.process.wait, EXIT_SECONDS + 30)
            took = time.monotonic() - asked
        if kind == "second signal":
            drains.quick_exits.append(took)
        else:
            drains.exits.append(took)
            if status != 0:
                drains.faults.append(f"exit status {status} ({kind})")

    output_len = (2000, 3500) if kind in ("long", "second signal") else (16, 300)
    plan = mixed_plan(room, adapters, RATE, SECONDS, output_len=output_len)
    if kind == "readers that stand still":
        plan.append(STANDING_READER)
    load = room.drive(server, sorted(plan, key=lambda planned: planned.seconds), end)
    if kind != "second signal":
        drains.records += load.records


async def _refusal(target: BloraTarget, drains: Drains) -> float:
    """Sends a request that comes too late; returns the seconds until it is refused."""
    began = time.monotonic()
    late = Record(Planned(seconds=began, prompt=[1], max_tokens=1, deadline=10.0))
    await target.ask(late, time.monotonic)
    if late.status != grpc.StatusCode.UNAVAILABLE.name:
        drains.faults.append(f"a late request got {late.status}")
    return time.monotonic() - began
