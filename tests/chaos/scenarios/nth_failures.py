"""D3: memory, registration or computation fails at the Nth call, and costs only what it comes over."""

import asyncio
from collections.abc import Iterator

import grpc

from blora.bench.load import Load, Record

from ..gates import Check, at_most, equal, gate, none_of, shown
from ..mixed import mixed_plan
from ..room import Room, Server

INJECTIONS = 500
OWN = ("add", "load", "register", "execute")  # what belongs to a request or an adapter
NOBODYS = ("admit", "extend", "publish")  # errors here restart the engine, which is a pause
NOBODYS_SHARE = 20  # one injection in so many is of these
MOST_CALLS = {"add": 6, "load": 1, "register": 1}
RATE, SECONDS = 20.0, 0.5


@gate(
    "D3",
    "failures",
    "500 times the Nth call fails where requests are added, adapters loaded and registered, steps computed and, one "
    "time in 20, planned or committed",
    "the engine survives what belongs to a request or an adapter; at most that request or load fails; all others end "
    "with the tokens that they have alone; nothing is left",
)
def nth_failures(room: Room) -> Iterator[Check]:
    folders = room.adapters(6)
    adapters = dict(list(folders.items())[:4])
    root = next(iter(folders.values())).parent
    options = ("--memory", "32MB", "--adapter-root", str(root))
    records, failed_loads, wanted_engines, engines = list[Record](), 0, 1, set[int]()
    most_failed, num_done, places = 0, 0, dict[int, str]()
    with room.server(room.tiny, *options, adapters=adapters, planted="nth_failure") as server:
        for number in range(room.scaled(INJECTIONS, least=len(OWN) + 1)):
            is_nobodys = number % NOBODYS_SHARE == len(OWN)
            place = room.rng.choice(NOBODYS) if is_nobodys else OWN[number % len(OWN)]
            room.order("fail", f"{place} {room.rng.randint(1, MOST_CALLS.get(place, 20))}")
            load, has_loaded = _round(room, server, adapters, list(folders.values())[4 + number % 2])
            has_happened = not (room.folder / "fail").exists()
            num_done += has_happened
            wanted_engines += is_nobodys and has_happened
            failed_loads += not has_loaded
            failures = [record for record in load.records if _has_failed(record)]
            most_failed = max(most_failed, len(failures) + (not has_loaded))
            for record in load.records:
                places[id(record)] = place
            records += load.records
            server.wait_serving(True)
            engines.add(server.engine_pid())
        (room.folder / "fail").unlink(missing_ok=True)
        server.settle()
        leaks = [line for line in server.log("CRITICAL") if "the engine ends: planted" not in line]
        yield none_of("other critical lines in the log", leaks, num_done)
    yield at_most("engines started again where they need not", len(engines) - wanted_engines, 0)
    yield at_most("requests and loads that one failure cost", most_failed, 1)
    ends = {"OK", "INTERNAL"}
    yield none_of("other ends", [f"{r.status}: {r.details}" for r in records if r.status not in ends], len(records))
    compared = room.some([record for record in records if not _has_failed(record)], 1000)
    oracle = room.oracle(room.tiny, adapters)
    wrong = [f"{places[id(r)]}: {told}" for r in compared for told in oracle.differences([r])]
    yield none_of("wrong answers", wrong, len(compared))
    yield shown("failures planted", num_done)
    yield equal("loads that failed, at least one", failed_loads > 0, True)


def _has_failed(record: Record) -> bool:
    """Whether the request failed, or one of its samples, which then is not as alone."""
    return record.status != "OK" or any(answer.finish_reason == "ERROR" for answer in record.answers)


def _round(room: Room, server: Server, adapters: dict[str, object], folder: object) -> tuple[Load, bool]:
    """Sends requests while an adapter is loaded and unloaded; returns the load, and whether the adapter was loaded."""
    has_loaded = False

    async def churn(_: Load) -> None:
        nonlocal has_loaded
        try:
            await asyncio.to_thread(server.client.load_adapter, "churn", str(folder))
            has_loaded = True
            await asyncio.to_thread(server.client.unload_adapter, "churn")
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error.details()

    plan = mixed_plan(room, list(adapters), RATE, SECONDS, output_len=(8, 60))
    return room.drive(server, plan, churn), has_loaded
