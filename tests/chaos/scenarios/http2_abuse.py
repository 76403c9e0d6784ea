"""C3: what a bad client does to connections costs the others nothing, and the server forgets it."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack

from ..canary import canary, streams
from ..gates import Check, at_most, equal, gate, none_of
from ..raw_http2 import CANCEL, PREFACE, RST_STREAM, Connection, frame, message, request_headers
from ..room import Room, Server

RESETS, PER_CONNECTION = 10_000, 100
IDLE, SLOW, HALF_OPEN = 500, 50, 50
FORGET_SECONDS = 5.0
STREAMS, TOKENS, SECONDS_EACH = 4, 1500, 4


@gate(
    "C3",
    "clients",
    "10,000 rapid resets, 500 idle connections, 50 that send a byte at a time, 50 that go in the middle of a request, "
    "noise",
    "streams beside it have the same tokens and no failure; files are back within 2 of before after 5 s",
)
def http2_abuse(room: Room) -> Iterator[Check]:
    with room.server(room.tiny, "--memory", "32MB") as server:
        with canary(room, server, streams(STREAMS, TOKENS)) as calm:
            pass
        time.sleep(0.5)
        num_files = server.facts.num_files()
        starts = range(0, max(int(40 * room.scale), 1) * SECONDS_EACH, SECONDS_EACH)
        with canary(room, server, [s for start in starts for s in streams(STREAMS, TOKENS, start=start)]) as bird:
            _reset(room, server)
            _hold(room, server)
        deadline = time.monotonic() + FORGET_SECONDS
        while server.facts.num_files() > num_files + 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        yield at_most("files left", server.facts.num_files() - num_files, 2)
        yield equal("answers of the streams", len(bird.answers | calm.answers), 1)
        yield none_of("failures of the streams", bird.failures, len(bird.records))
        server.settle()
        yield none_of("errors in the log", server.log("CRITICAL", "ERROR"), room.scaled(RESETS))


def _reset(room: Room, server: Server) -> None:
    """Begins requests and resets them at once."""
    for _ in range(room.scaled(RESETS // PER_CONNECTION)):
        with Connection(server.address) as connection:
            connection.greet()
            for _ in range(PER_CONNECTION):
                stream = connection.next_stream()
                begun = request_headers(stream) + message(stream, b"\x12\x01x", is_last=False)
                try:
                    connection.socket.sendall(begun + frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big")))
                except OSError:
                    break  # the server may end such a connection


def _hold(room: Room, server: Server) -> None:
    """Holds connections of every bad kind, then drops them."""
    with ExitStack() as stack:
        for _ in range(room.scaled(IDLE)):
            stack.enter_context(Connection(server.address)).greet()
        slow = [stack.enter_context(Connection(server.address)) for _ in range(room.scaled(SLOW))]
        for _ in range(room.scaled(HALF_OPEN)):
            connection = stack.enter_context(Connection(server.address))
            connection.greet()
            connection.socket.sendall(request_headers(connection.next_stream())[:-7])
        for byte in PREFACE:
            for connection in slow:
                connection.socket.sendall(bytes([byte]))
            time.sleep(0.02)
        for _ in range(room.scaled(HALF_OPEN)):
            noisy = stack.enter_context(Connection(server.address))
            noisy.socket.sendall(os.urandom(1000))
