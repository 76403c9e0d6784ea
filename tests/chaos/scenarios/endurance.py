"""H1, H2: hours of everything leave nothing behind."""

import asyncio
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
from processes import ENGINE

from blora.bench.load import Load, Planned, Record

from ..gates import Check, at_most, equal, gate, none_of, shown
from ..malformed import malformed_requests
from ..measured_load import p
from ..mixed import mixed_plan
from ..room import ROOT, Room, Server

SECONDS = 1800.0
RATE = 8.0  # requests/s: some 70 % of what two cores carry, with their client
SAMPLE_SECONDS = 5.0
WARM_SHARE = 0.25  # of the time, in which caches fill
SLOPE_MB = 2.0  # an hour
SLOWER = 1.05
MANY, LEFT_BYTES = 2_000_000, 4.0


@gate(
    "H1",
    "endurance",
    "30 minutes of mixed load on the tiny model: every kind of request, cancels, deadlines, malformed requests, loads "
    "and unloads",
    "memory of the front end and of the engine grows by at most 2 MB an hour (95 % upper bound); files and threads are "
    "flat; gaps at the end at most 5 % longer (median); no leak reported; answers are those alone",
)
def soak(room: Room) -> Iterator[Check]:
    adapters = room.adapters(12)
    root = next(iter(adapters.values())).parent
    loaded = dict(list(adapters.items())[:6])
    options = ("--memory", "16MB", "--adapter-root", str(root), "--host-cache", "1MB")
    seconds = room.seconds(SECONDS, least=20.0)
    with room.server(room.tiny, *options, adapters=loaded) as server:
        engine = server.engine_pid()
        watch = Watch(server, seconds)
        plan = [_maybe_leaving(room, planned) for planned in mixed_plan(room, list(loaded), RATE, seconds)]
        disturb = Disturbance(room, server, [path for name, path in adapters.items() if name not in loaded], seconds)
        records = room.drive(server, plan, watch.run, disturb.run).records
        server.settle()
        yield equal("engines started again", int(server.engine_pid() != engine), 0)
        yield none_of("leaks and errors in the log", server.log("CRITICAL", "ERROR"), len(records))
    for name in ("front end", "engine"):
        slope, margin = _slope(watch.samples(name))
        yield at_most(f"growth of the {name}, with margin", slope + margin, SLOPE_MB, "MB/h")
        yield shown(f"growth of the {name}", slope, "MB/h")
    yield equal("files", watch.files[-1] - watch.files[len(watch.files) // 4] <= 2, True)
    yield equal("threads", watch.threads[-1] - watch.threads[len(watch.threads) // 4], 0)
    yield at_most("median gap at the end / at the beginning", _slower(records, seconds), SLOWER)
    expected = {"OK", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
    yield none_of("other ends", [f"{r.status}: {r.details}" for r in records if r.status not in expected], len(records))
    sample = room.some(records, 1000)
    yield none_of("wrong answers", room.oracle(room.tiny, loaded).differences(sample), len(sample))
    yield none_of("other faults", disturb.faults, disturb.num_done)


def _maybe_leaving(room: Room, planned: Planned) -> Planned:
    match room.rng.randrange(10):
        case 0:
            return replace(planned, cancel_seconds=room.rng.expovariate(5.0))
        case 1:
            return replace(planned, deadline=0.001 + room.rng.expovariate(5.0))
        case _:
            return planned


def _slower(records: Sequence[Record], seconds: float) -> float:
    """Returns the ratio of the median gap in the last third to that in the second."""
    gaps: list[list[float]] = [[], [], []]
    for record in records:
        gaps[min(int(3 * record.planned.seconds / seconds), 2)] += record.gaps
    return p(gaps[2], 50) / p(gaps[1], 50)


def _slope(samples: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Returns the growth in MB an hour, and the half width of its 95 % interval, by least squares."""
    hours, sizes = [at / 3600 for at, _ in samples], [size / 1e6 for _, size in samples]
    slope, offset = statistics.linear_regression(hours, sizes)
    errors = [size - slope * at - offset for at, size in zip(hours, sizes, strict=True)]
    variance = sum(error**2 for error in errors) / max(len(errors) - 2, 1)
    mean = statistics.fmean(hours)
    return slope, 1.96 * (variance / sum((at - mean) ** 2 for at in hours)) ** 0.5


class Watch:
    """Memory, files and threads of a server, again and again."""

    def __init__(self, server: Server, seconds: float) -> None:
        self._server, self._seconds = server, seconds
        self._sizes: dict[str, list[tuple[float, int]]] = {"front end": [], "engine": []}
        self.files: list[int] = []
        self.threads: list[int] = []

    async def run(self, load: Load) -> None:
        facts = self._server.facts
        engine = next(pid for pid, module in facts.children().items() if module == ENGINE)
        while (now := load.clock()) < self._seconds:
            for name, pid in (("front end", facts.pid), ("engine", engine)):
                self._sizes[name].append((now, facts.resident_bytes(pid)))
            self.files.append(facts.num_files())
            self.threads.append(facts.num_threads())
            await asyncio.sleep(min(SAMPLE_SECONDS, self._seconds / 50))

    def samples(self, name: str) -> list[tuple[float, int]]:
        """Those after the time in which caches fill."""
        return [sample for sample in self._sizes[name] if sample[0] >= WARM_SHARE * self._seconds]


class Disturbance:
    """What happens beside the load: adapters come and go, and malformed requests are sent."""

    def __init__(self, room: Room, server: Server, folders: list[Path], seconds: float) -> None:
        self._room, self._server, self._folders, self._seconds = room, server, folders, seconds
        self.faults: list[str] = []
        self.num_done = 0

    async def run(self, load: Load) -> None:
        async with grpc.aio.insecure_channel(self._server.address) as channel:
            while load.clock() < self._seconds:
                for request in malformed_requests(self._room.rng, 5):
                    await self._send(channel, request.method, request.data, request.expected)
                await asyncio.to_thread(self._churn)
                await asyncio.sleep(self._room.rng.uniform(0.0, 2.0))

    async def _send(self, channel: grpc.aio.Channel, method: str, data: bytes, expected: frozenset[str]) -> None:
        self.num_done += 1
        status = "OK"
        try:
            async for _ in channel.unary_stream(method)(data, timeout=60):
                pass
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        if status not in expected:
            self.faults.append(f"{status} for {data[:40]!r} of {method}")

    def _churn(self) -> None:
        client, name = self._server.client, f"churn-{self._room.rng.randrange(3)}"
        try:
            client.load_adapter(name, str(self._room.rng.choice(self._folders)))
            client.generate([1, 2], name, max_tokens=2)
            client.unload_adapter(name)
        except grpc.RpcError as error:
            self.faults.append(f"{error.code().name}: {error.details()}")


@gate(
    "H2",
    "requests",
    "2,000,000 requests through the whole front end and scheduler, with a fake model on a virtual clock",
    "at most 4 bytes of memory left by a request",
)
def many_requests(room: Room) -> Iterator[Check]:
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
    command = [sys.executable, "-m", "chaos.many_requests", str(room.scaled(MANY))]
    printed = subprocess.check_output(command, cwd=ROOT / "tests", env=os.environ | {"PYTHONPATH": path}, text=True)
    yield at_most("left by a request", float(printed), LEFT_BYTES, "bytes")
