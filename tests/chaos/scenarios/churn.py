"""F2: adapters are loaded, replaced and unloaded under traffic, and no answer is computed with the wrong weights."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import grpc

from blora.bench.load import Load, Planned, Record

from ..gates import Check, at_most, gate, none_of
from ..measured_load import p
from ..mixed import GREEDY
from ..oracle import Oracle
from ..room import Room, Server

OPERATIONS = 2000
RATE, PER_SECOND = 20.0, 8.0  # requests and operations a second
NAMES, FOLDERS, PROMPTS = 4, 12, 5
UNLOAD_SECONDS = 1.0  # after the last user
KINDS = (GREEDY, {**GREEDY, "n": 2}, {"temperature": 1.0, "seed": 3, "n": 3, "ignore_eos": True})
EXPECTED = {"OK", "NOT_FOUND", "CANCELLED"}


@dataclass(slots=True)
class Span:
    """A time in which a name may have meant an adapter, by the load's clock."""

    adapter: str
    since: float
    until: float = inf


class History:
    """Which adapter a name may have meant when."""

    def __init__(self) -> None:
        self._spans: dict[str, list[Span]] = defaultdict(list)

    def begin(self, name: str, adapter: str, now: float) -> None:
        self._spans[name].append(Span(adapter, now))

    def end_all(self, name: str, now: float, but: str = "") -> None:
        for span in self._spans[name]:
            if span.until == inf and span.adapter != but:
                span.until = now

    def adapters(self, name: str, begin: float, end: float) -> set[str]:
        return {span.adapter for span in self._spans[name] if span.since <= end and span.until >= begin}


@gate(
    "F2",
    "adapters",
    "2,000 loads, replacements and unloads of adapters under traffic with n > 1 and cancels",
    "every answer is that of weights that its name meant while it ran; no operation waits for ever; unloaded at most "
    "1 s after the last user; no use left over",
)
def churn(room: Room) -> Iterator[Check]:
    folders = room.adapters(FOLDERS)
    names = [f"n{index}" for index in range(NAMES)]
    root = next(iter(folders.values())).parent
    seconds = room.scaled(OPERATIONS) / PER_SECOND
    with room.server(room.tiny, "--memory", "16MB", "--adapter-root", str(root)) as server:
        churning = Churning(room, server, names, folders, seconds)
        plan = _plan(room, names, seconds)
        records = room.drive(server, plan, churning.run).records
        for adapter in server.client.list_adapters():
            server.client.unload_adapter(adapter.name)
        server.settle()
        yield none_of("critical lines in the log", server.log("CRITICAL"), churning.num_operations)
    yield none_of("operations that failed", churning.faults, churning.num_operations)
    yield at_most("unloaded after (p99)", p(churning.unload_seconds, 99), UNLOAD_SECONDS, "s")
    statuses = [f"{r.status}: {r.details}" for r in records if r.status not in EXPECTED]
    yield none_of("requests with another end", statuses, len(records))
    oracle = room.oracle(room.tiny, folders)
    wrong = [told for record in records if (told := _wrong(record, churning.history, oracle))]
    yield none_of("answers with wrong weights", wrong, len(records))


def _wrong(record: Record, history: History, oracle: Oracle) -> str:
    """Returns what is wrong if the answer is that of no adapter that the name meant while the request ran."""
    adapters = history.adapters(record.planned.adapter, record.sent or 0.0, record.ended or inf)
    if record.status == "NOT_FOUND" or not record.answers:
        return ""
    as_asked = [replace(record.planned, adapter=adapter) for adapter in sorted(adapters)]
    told = [oracle.differences([replace(record, planned=planned)]) for planned in as_asked]
    return "" if [] in told else f"{record.planned.adapter}: none of {len(adapters)} adapters"


def _plan(room: Room, names: list[str], seconds: float) -> list[Planned]:
    prompts = [room.rng.choices(range(250), k=room.rng.randint(5, 60)) for _ in range(PROMPTS)]
    return [
        Planned(
            seconds=number / RATE,
            prompt=room.rng.choice(prompts),
            max_tokens=60,
            adapter=room.rng.choice(names),
            sampling=dict(room.rng.choice(KINDS)),
            cancel_after=room.rng.choice([None, None, None, 5]),
            deadline=60.0,
        )
        for number in range(int(seconds * RATE))
    ]


class Churning:
    def __init__(self, room: Room, server: Server, names: list[str], folders: dict[str, Path], seconds: float) -> None:
        self._room, self._client, self._names, self._folders = room, server.client, names, folders
        self._seconds = seconds
        self._loaded: set[str] = set()
        self.history = History()
        self.faults: list[str] = []
        self.unload_seconds: list[float] = []
        self.num_operations = 0

    async def run(self, load: Load) -> None:
        while load.clock() < self._seconds:
            self.num_operations += 1
            name = self._room.rng.choice(self._names)
            try:
                if name in self._loaded and self._room.rng.random() < 0.3:
                    await self._unload(name, load)
                else:
                    await self._load(name, load)
            except grpc.RpcError as error:
                self.faults.append(f"{error.code().name}: {error.details()}")
            await asyncio.sleep(self._room.rng.expovariate(PER_SECOND))

    async def _load(self, name: str, load: Load) -> None:
        adapter, folder = self._room.rng.choice(list(self._folders.items()))
        self.history.begin(name, adapter, load.clock())
        await asyncio.to_thread(self._client.load_adapter, name, str(folder))
        self.history.end_all(name, load.clock(), but=adapter)
        self._loaded.add(name)

    async def _unload(self, name: str, load: Load) -> None:
        """Aborts its users half of the time; measures only these, which wait for nobody."""
        aborts = self._room.rng.random() < 0.5
        began = time.monotonic()
        await asyncio.to_thread(self._client.unload_adapter, name, abort=aborts)
        if aborts:
            self.unload_seconds.append(time.monotonic() - began)
        self.history.end_all(name, load.clock())
        self._loaded.discard(name)
