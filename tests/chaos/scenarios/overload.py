"""E1, E2, E3: more load than the server can carry. What it accepts it serves in time; the rest it refuses at once."""

import asyncio
from collections.abc import Iterator

from blora.bench.load import Load, make_plan

from ..gates import Check, at_least, at_most, gate, none_of, shown
from ..measured_load import (
    IN_OVERLOAD,
    OBJECTIVE,
    WARM_SECONDS,
    arrived,
    capacity,
    drive_at,
    goodput,
    measured_server,
    p,
    traffic,
)
from ..room import Room, ok

RUN_SECONDS = 60.0
SHARES = {2: 0.95, 5: 0.90, 10: 0.80}  # of the peak, by how many times the capacity arrives
REFUSED_MS = 25.0
CALM, SPIKE, CALM_SECONDS, SPIKE_SECONDS = 0.7, 5.0, 30.0, 30.0
RECOVERY_SECONDS = 2.0
BY_CHANCE = 0.03  # of the arrivals, that a burst within seven tenths of the capacity may have refused
MEMORY_BYTES = 64 << 20
FILL_SECONDS = 60.0  # until each page of the arena, 512 MB, has held tokens: it is in RAM only from then on
MEMORY_SECONDS = 60.0
MIB = 1 << 20


@gate(
    "E1",
    "overload",
    "open-loop load of 2, 5 and 10 times the capacity on the default model with 4 adapters; a first token within 1 s "
    "and 0.1 s a token are good",
    "goodput at least 95 / 90 / 80 % of its peak; refusals within 25 ms (p99), with RetryInfo; first token of what is "
    "accepted within 1 s (p99)",
)
def overload(room: Room) -> Iterator[Check]:
    with measured_server(room, *IN_OVERLOAD) as server:
        peak = capacity(room, server, *IN_OVERLOAD)
        yield shown("peak", peak, "good/s")
        for times, share in SHARES.items():
            seconds = room.seconds(RUN_SECONDS, least=2 * WARM_SECONDS)
            records = drive_at(room, server, times * peak, seconds).records
            yield at_least(f"goodput at {times}x", goodput(records, WARM_SECONDS, seconds) / peak, share, "%")
            refused = [record for record in records if record.status == "RESOURCE_EXHAUSTED"]
            if refused:
                yield at_most(
                    f"refused within at {times}x", 1e3 * p((r.seconds for r in refused), 99), REFUSED_MS, "ms"
                )
            served = [record.ttft for record in records if record.status == "OK"]
            yield at_most(f"first token within at {times}x", p(served, 99), OBJECTIVE.ttft, "s")
            others = [r.status for r in records if r.status not in ("OK", "RESOURCE_EXHAUSTED")]
            yield none_of("other ends", others, len(records))
            lacking = [record.details for record in refused if record.retry_after is None]
            yield none_of("refusals without RetryInfo", lacking, len(refused))


@gate(
    "E2",
    "overload",
    "30 s of 5 times the capacity between two times of 0.7 times",
    "2 s after the spike the first token comes as before it (p95 at most twice as late), and no more is refused (3 "
    "points)",
)
def spike(room: Room) -> Iterator[Check]:
    with measured_server(room, *IN_OVERLOAD) as server:
        rate = capacity(room, server, *IN_OVERLOAD)
        calm, high = room.seconds(CALM_SECONDS, least=8.0), room.seconds(SPIKE_SECONDS, least=5.0)
        plan = make_plan(
            traffic(room, CALM * rate, calm),
            traffic(room, SPIKE * rate, high, start=calm),
            traffic(room, CALM * rate, calm, start=calm + high),
        )
        records = room.drive(server, plan).records
        before = arrived(records, WARM_SECONDS, calm)
        after = arrived(records, calm + high + RECOVERY_SECONDS, 2 * calm + high)
        ratio = p((r.ttft for r in after), 95) / p((r.ttft for r in before), 95)
        yield at_most("first token (p95) after / before", ratio, 2.0)
        refused_before, refused_after = (1 - len(ok(some)) / len(some) for some in (before, after))
        yield shown("refused before", refused_before, "%")
        yield at_most("refused after", refused_after, refused_before + BY_CHANCE, "%")
        ends = {record.status for record in records} - {"OK", "RESOURCE_EXHAUSTED"}
        yield none_of("other ends", sorted(ends), len(records))


@gate(
    "E3",
    "overload",
    "60 s of 10 times the capacity",
    "once all of the arena has been used, the memory of the front end and the engine grows by at most 64 MB together",
)
def memory_under_overload(room: Room) -> Iterator[Check]:
    with measured_server(room, *IN_OVERLOAD) as server:
        rate = capacity(room, server, *IN_OVERLOAD)
        drive_at(room, server, rate, room.seconds(FILL_SECONDS))
        pids = server.facts.pid, server.engine_pid()

        def resident() -> int:
            return sum(map(server.facts.resident_bytes, pids))

        before, most = resident(), 0
        seconds = room.seconds(MEMORY_SECONDS)

        async def watch(load: Load) -> None:
            nonlocal most
            while load.clock() < seconds:
                most = max(most, resident())
                await asyncio.sleep(0.2)

        room.drive(server, make_plan(traffic(room, 10 * rate, seconds)), watch)
        yield at_most("growth", (most - before) / MIB, MEMORY_BYTES / MIB, "MiB")
