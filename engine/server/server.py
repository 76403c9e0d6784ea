"""The gRPC server around an engine: options, health, reflection, and the life from start to drain.

Owns the listening port and the order of starting and stopping. Knows no message and no command line.
"""

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from ..errors import EngineUnavailable
from . import health
from .engine import ServedEngine
from .service import AdapterServicer, EngineServicer, GenerationServicer

# Seconds that streams have, after the engine has finished them, to reach clients that read slowly.
LAST_WORDS = 5.0

OPTIONS = (
    # Two servers on one port: by default Linux lets both listen and deals connections out between them.
    ("grpc.so_reuseport", 0),
    # Memory is taken for a message before any of our checks sees it. A prompt of a million token ids fits.
    ("grpc.max_receive_message_length", 4 << 20),
    # A client that vanished without a word (lost host, silent NAT) would be generated for up to max_tokens.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Clients ping too, idle connections included, and no data flows while a request waits or prefills. The default
    # tolerates a ping in five minutes and closes the connection, with all its streams, as ENHANCE_YOUR_CALM.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # a "recv" in this name is silently ignored
    ("grpc.http2.max_ping_strikes", 0),
)


SERVICERS = (GenerationServicer, AdapterServicer, EngineServicer)


class Server:
    """One port. Create it inside a running event loop."""

    def __init__(self, backend: ServedEngine, host: str, port: int) -> None:
        self._backend = backend
        self._has_started = False  # the backend
        self._host, self._port = host, port
        self._server = grpc.aio.server(options=OPTIONS)
        services = [servicer(self._get_backend) for servicer in SERVICERS]
        names = [service.NAME for service in services]
        self._health = health.Health(names)
        self._health.add_to(self._server)
        self._server.add_generic_rpc_handlers(tuple(service.handler() for service in services))
        reflection.enable_server_reflection((*names, health.NAME, reflection.SERVICE_NAME), self._server)

    @property
    def address(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    async def start(self) -> None:
        """Listens, as NOT_SERVING. Port 0 takes a free one. Raises OSError when the port cannot be had."""
        await self._health.set(False)
        try:
            self._port = self._server.add_insecure_port(self.address)
        except RuntimeError:
            raise OSError(
                f"cannot listen on {self.address}: the port is taken or the host is not of this machine"
            ) from None
        await self._server.start()

    def _get_backend(self) -> ServedEngine:
        if not self._has_started:
            raise EngineUnavailable("the engine is starting")
        return self._backend

    async def follow_backend(self) -> None:
        """The engine has started: from now on requests go to it, and health is the engine's."""
        self._has_started = True
        self._backend.on_serving_change(self._health.set_soon)
        await self._health.set(self._backend.is_serving)

    async def drain(self) -> None:
        """Sends new requests away with UNAVAILABLE, finishes those that run, then stops."""
        await self._health.drain()
        await self._backend.drain()
        await self._server.stop(LAST_WORDS)

    async def stop(self) -> None:
        """Stops at once; cancels what runs. Idempotent."""
        await self._server.stop(None)


async def serve(backend: ServedEngine, host: str, port: int, announce: Callable[[str], None]) -> int:
    """Runs until SIGTERM or SIGINT, then drains; the second signal stops at once. The exit status of the process.

    `announce` gets the address when the engine serves. Raises what the engine's start raises, or OSError.
    """
    server = Server(backend, host, port)
    async with _signals() as (first, second):
        try:
            await server.start()
            if await _finished(backend.start(), before=first):
                await server.follow_backend()
                announce(server.address)
                await first.wait()
                return 0 if await _finished(server.drain(), before=second) else 1
            return 0
        finally:
            await server.stop()
            await backend.shutdown()


@asynccontextmanager
async def _signals() -> AsyncGenerator[tuple[asyncio.Event, asyncio.Event], None]:
    """Events for the first and the second signal that ask to stop."""
    first, second = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (second if first.is_set() else first).set())
    try:
        yield first, second
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _finished(work: Coroutine[Any, Any, None], *, before: asyncio.Event) -> bool:
    """Whether `work` came to its end before the event; if not, it is cancelled. Raises what it raises."""
    task, event = asyncio.ensure_future(work), asyncio.ensure_future(before.wait())
    try:
        await asyncio.wait({task, event}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        return task.done()
    finally:
        for unfinished in (task, event):
            unfinished.cancel()
        await asyncio.wait({task, event})
