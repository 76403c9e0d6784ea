"""Hostile clients of HTTP: heads that are too large or never end, bodies that are too large or slow, readers that do
not read."""

import asyncio
import json
import socket
import struct

import pytest
from fake_llm import HTTP, FakeLLM, run, running

from blora.engine.server.http import exchange, listener
from blora.engine.server.times import ServerTimes

COMPLETIONS = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n"


async def talk(address, data):
    """Sends bytes; returns all that comes until the server closes the connection."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def said_to(data):
    async def body():
        async with running(FakeLLM(), http=HTTP) as server:
            return await talk(server.addresses[1], data)

    return run(body())


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nx: " + b"a" * (listener.MAX_HEADER_BYTES + 1) + b"\r\n\r\n",
        b"GET /" + b"a" * (listener.MAX_HEADER_BYTES + 1) + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"x: a\r\n" * (listener.MAX_HEADERS + 1) + b"\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=["long", "target", "many", "nonsense"],
)
def test_a_head_that_is_too_large_is_refused(head):
    assert said_to(head).startswith(b"HTTP/1.1 400 ")


def test_a_head_that_never_ends_does_not_hold_its_connection(monkeypatch):
    monkeypatch.setattr(listener, "HEADER_TIMEOUT", 0.1)
    assert said_to(b"") == b""
    assert said_to(b"GET /health HTTP/1.1\r\nx: ") == b""


def test_a_body_that_never_comes_does_not_hold_its_connection(monkeypatch):
    monkeypatch.setattr(exchange, "BODY_TIMEOUT", 0.1)
    assert said_to(COMPLETIONS + b"connection: close\r\ncontent-length: 100\r\n\r\n{").startswith(b"HTTP/1.1 408 ")


def test_a_length_that_is_too_large_is_refused_before_the_body_comes():
    answer = said_to(COMPLETIONS + b"connection: close\r\ncontent-length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_more_connections_than_are_kept_are_closed(monkeypatch):
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 2)

    async def body():
        async with running(FakeLLM(), http=HTTP) as server:
            host, _, port = server.addresses[1].removeprefix("http://").rpartition(":")
            kept = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
            assert await talk(server.addresses[1], b"") == b""
            for _, writer in kept:
                writer.close()

    run(body())


def test_a_client_that_does_not_read_loses_its_stream():
    """Its connection is reset: what waits for it would wait forever."""
    llm = FakeLLM()
    data = json.dumps({"prompt": "x" * 60_000, "max_tokens": 60_000, "stream": True, "logprobs": 3}).encode()

    async def body():
        async with running(llm, ServerTimes(slow_reader_timeout=0.2), http=HTTP) as server:
            host, _, port = server.addresses[1].removeprefix("http://").rpartition(":")
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
                head = COMPLETIONS + b"content-length: %d\r\n\r\n" % len(data)
                await asyncio.get_running_loop().sock_sendall(client, head + data)
                while not llm.closed:
                    await asyncio.sleep(0.02)

    run(body())
    assert len(llm.closed) == 1


COSTLY = {
    "prompt": b'{"prompt": [' + b"1," * 400_000 + b"1]}",
    "prompt-texts": b'{"prompt": [' + b'"",' * 300_000 + b'""]}',
    "stop_token_ids": b'{"prompt": "a", "stop_token_ids": [' + b"1," * 300_000 + b"1]}",
    "structured_outputs": b'{"prompt": "a", "structured_outputs": {"json": [' + b"[]," * 100_000 + b"[]]}}",
    "messages": b'{"prompt": "a", "messages": "' + b"[" * 100_000,
}


@pytest.mark.parametrize("data", COSTLY.values(), ids=COSTLY)
def test_what_would_take_long_to_read_is_refused_by_its_size(data, request):
    head = COMPLETIONS + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(data)
    answer = said_to(head + data)
    assert answer.startswith(b"HTTP/1.1 400 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    name = request.node.callspec.id.partition("-")[0]
    assert error["param"] in (name, "body") and ("at most" in error["message"] or name in ("prompt", "messages"))
