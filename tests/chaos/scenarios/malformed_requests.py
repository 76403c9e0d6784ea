"""C1: malformed requests get the right status quickly, and nobody else notices."""

import gzip
from collections.abc import Iterator, Sequence

import grpc

from blora.bench.load import Load, Planned, Record
from blora.bench.load.driver import Clock

from ..canary import canary, streams
from ..gates import Check, at_most, equal, gate, none_of
from ..malformed import Malformed, malformed_requests, too_large
from ..measured_load import p
from ..raw_http2 import Connection, message, request_headers
from ..room import RUNNER, Room, Server

REQUESTS = 20_000
RATE = 200.0  # a second
LARGE, BOMBS, BOMB_BYTES = 20, 10, 256 << 20
SMALL_BYTES = 64 << 10
REFUSED_MS = 10.0
GROWN_BYTES = 16 << 20
CANARY = 4  # streams
OPTIONS = ("--memory", "256MB", "--block-size", "16", "--max-num-batched-tokens", "512")
MIB = 1 << 20


class MalformedTarget:
    """Sends bytes as they are. A planned request has the place of its bytes as its priority."""

    def __init__(self, requests: Sequence[Malformed], channel: grpc.aio.Channel) -> None:
        self._requests, self._channel = requests, channel
        self.wrong: list[str] = []
        self.small_seconds: list[float] = []  # of refusals of small messages

    async def ask(self, record: Record, clock: Clock) -> None:
        request = self._requests[record.planned.priority]
        record.sent = clock()
        call = self._channel.unary_stream(request.method)(request.data, timeout=60)
        try:
            async for _ in call:
                pass
            record.note_end(clock(), "OK")
        except grpc.aio.AioRpcError as error:
            record.note_end(clock(), error.code().name, error.details() or "")
        if record.status not in request.expected:
            self.wrong.append(f"{record.status} for {request.data[:40]!r} of {request.method}: {record.details[:80]}")
        if len(request.data) <= SMALL_BYTES and record.status != "OK":
            self.small_seconds.append(clock() - record.sent)


@gate(
    "C1",
    "clients",
    "20,000 malformed requests at 200 a second: random bytes, mutated messages, values out of bounds, unknown methods, "
    "messages of 8 MB; then 10 of 256 MB that are compressed to a thousandth",
    "every one gets its right status, none UNKNOWN or INTERNAL; refused within 10 ms (p99, up to 64 kB); memory of the "
    "front end grows by at most 16 MB; streams beside it have the same tokens, and gaps (p99) at most twice as long",
)
def malformed(room: Room) -> Iterator[Check]:
    with room.server(room.real, *OPTIONS) as server:
        num_requests = room.scaled(REQUESTS)
        with canary(room, server, streams(CANARY, 300)) as calm:
            pass
        before = server.facts.resident_bytes()
        starts = range(0, int(num_requests / RATE), 8)
        with canary(room, server, [s for start in starts for s in streams(CANARY, 300, start=start)]) as bird:
            target = _send(room, server)
            _send_bombs(server)
        grown = server.facts.resident_bytes() - before
        yield none_of("requests with a wrong status", target.wrong, num_requests)
        yield at_most("refused within (p99)", 1e3 * p(target.small_seconds, 99), REFUSED_MS, "ms")
        yield at_most("growth", grown / MIB, GROWN_BYTES / MIB, "MiB")
        yield equal("answers of the streams beside", len(bird.answers | calm.answers), 1)
        yield none_of("failures of the streams beside", bird.failures, len(bird.records))
        yield at_most("gap (p99) beside / alone", bird.gap(99) / calm.gap(99), 2.0)
        server.settle()
        yield none_of("errors in the log", server.log("CRITICAL", "ERROR"), num_requests)


def _send(room: Room, server: Server) -> MalformedTarget:
    requests = list(malformed_requests(room.rng, room.scaled(REQUESTS)))
    for _ in range(room.scaled(LARGE)):
        requests.insert(room.rng.randrange(len(requests)), too_large(8 * MIB))
    plan = [Planned(seconds=n / RATE, prompt="", max_tokens=1, priority=n) for n in range(len(requests))]

    async def whole() -> MalformedTarget:
        async with grpc.aio.insecure_channel(server.address) as channel:
            target = MalformedTarget(requests, channel)
            await Load(plan, target).run()
            return target

    return RUNNER.run(whole())


def _send_bombs(server: Server) -> None:
    bomb = gzip.compress(bytes(BOMB_BYTES))
    for _ in range(BOMBS):
        with Connection(server.address) as connection:
            connection.greet()
            stream = connection.next_stream()
            connection.socket.sendall(request_headers(stream, further={"grpc-encoding": "gzip"}))
            connection.socket.sendall(message(stream, bomb, is_compressed=True))
            connection.is_closed_by_server(0.2)
