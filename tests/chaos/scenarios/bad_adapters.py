"""F1: a broken adapter among a hundred good ones is refused with its reason, and nobody else notices."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc

from blora.bench.load import Load, Record
from blora.proto.client import Client

from ..gates import Check, at_least, at_most, equal, gate, none_of
from ..measured_load import p
from ..mixed import mixed_plan
from ..room import WEIGHTS, Room, Server, copied

sys.path.insert(0, str(Path(__file__).parents[2] / "adapters/peft"))
from test_checkpoint import CORRUPTIONS  # the corpus: a change to a folder, and the expected reason

NUM_GOOD, BIT_FLIPS = 100, 1000
RATE, SECONDS = 10.0, 60.0
LOAD_SECONDS = 1.0  # of CPU; a load is nicer than everything else
GAP = 1.5
OUTSIDE = "lies outside the allowed folders"  # where a kind is a link, that is found first
NUM_LAYERS = 2  # of the model that the corpus was made for


@gate(
    "F1",
    "adapters",
    f"{len(CORRUPTIONS)} kinds of broken adapters and 1,000 with a flipped bit are loaded beside 100 good ones under "
    "traffic",
    "each kind is refused with FAILED_PRECONDITION and its reason within 1 s; good adapters answer as alone, with gaps "
    "(p99) at most 1.5 times as long; no process ends",
)
def bad_adapters(room: Room) -> Iterator[Check]:
    room.num_layers = NUM_LAYERS
    good = room.adapters(room.scaled(NUM_GOOD, least=10))
    folder = room.folder / "root"
    options = ("--memory", "32MB", "--adapter-root", str(folder), "--max-num-seqs", "64")
    folder.mkdir()
    with room.server(room.tiny, *options, adapters=good) as server:
        children = server.facts.children()
        calm = room.drive(server, mixed_plan(room, list(good), RATE, room.seconds(SECONDS / 3))).records
        loads = Loads(room, server, folder)
        beside = room.drive(server, mixed_plan(room, list(good), RATE, room.seconds(SECONDS)), loads.all).records
        yield equal("processes that ended", len(children.keys() - server.facts.children().keys()), 0)
        yield none_of("critical lines in the log", server.log("CRITICAL"), loads.num_loads)
    yield at_least("kinds", loads.num_kinds, room.scaled(60))
    yield none_of("loads with a wrong end", loads.wrong, loads.num_loads)
    yield at_most("refused after (p99)", p(loads.seconds, 99), LOAD_SECONDS, "s")
    yield none_of("requests that failed", [r.details for r in beside if r.status != "OK"], len(beside))
    yield none_of("wrong answers", room.oracle(room.tiny, good).differences(beside), len(beside))
    yield at_most("gap (p99) beside loads / without", _gap(beside) / _gap(calm), GAP)


def _gap(records: list[Record]) -> float:
    return p((gap for record in records for gap in record.gaps), 99)


class Loads:
    """Loads every broken adapter once, then those with a flipped bit."""

    def __init__(self, room: Room, server: Server, folder: Path) -> None:
        self._room, self._client, self._folder = room, server.client, folder
        self.wrong: list[str] = []
        self.seconds: list[float] = []
        self.num_loads = self.num_kinds = 0

    async def all(self, _: Load) -> None:
        kinds = list(CORRUPTIONS.items())
        self._room.rng.shuffle(kinds)
        source = self._room.adapter
        for kind, (spoil, reason) in kinds[: self._room.scaled(len(kinds))]:
            path = copied(source, self._folder / str(self.num_loads))
            spoil(path)
            await self._load(kind, path, reason)
            self.num_kinds += 1
        for _ in range(self._room.scaled(BIT_FLIPS)):
            path = copied(source, self._folder / str(self.num_loads))
            content = bytearray((path / WEIGHTS).read_bytes())
            content[self._room.rng.randrange(len(content))] ^= 1 << self._room.rng.randrange(8)
            (path / WEIGHTS).write_bytes(content)
            await self._load("a flipped bit", path, None)

    async def _load(self, kind: str, path: Path, reason: str | None) -> None:
        """reason: None if the adapter may be good."""
        began = asyncio.get_running_loop().time()
        self.num_loads += 1
        found = await asyncio.to_thread(_end_of_load, self._client, path)
        if reason is not None:
            self.seconds.append(asyncio.get_running_loop().time() - began)
        if reason is None and found is None:
            await asyncio.to_thread(self._client.unload_adapter, "bad")
        elif found is None or found.code() is not grpc.StatusCode.FAILED_PRECONDITION:
            self.wrong.append(f"{kind}: {found.code() if found else 'loaded'}")
        elif reason is not None and not any(told in (found.details() or "") for told in (reason, OUTSIDE)):
            self.wrong.append(f"{kind}: another reason: {(found.details() or '')[:80]}")


def _end_of_load(client: Client, path: Path) -> grpc.RpcError | None:
    try:
        client.load_adapter("bad", str(path))
    except grpc.RpcError as error:
        return error
    return None
