"""Server: the gRPC server around an engine: its options, health and reflection, and its life from start to drain.

Owns the listening port and the order of starting and stopping. Knows no message and no command line.
"""

import asyncio
import gc
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from ..errors import EngineUnavailable
from ..identity.caller import Caller
from ..identity.identities import ANYBODY, Identities
from . import health
from .callers_engine import CallersEngine
from .engine import ServedEngine
from .http.door import HttpDoor
from .http.options import HttpOptions
from .message_sizes import largest_message, largest_of_all
from .rpc import Calls
from .service import AdapterServicer, EngineServicer, GenerationServicer
from .times import DEFAULTS, LAST_WORDS, ServerTimes

ENGINE_GRACE = 4.0  # seconds for the engine to end by itself; that it is killed then takes a moment, too
LOOK_INTERVAL = 2.0  # seconds between looks at the files of identities
PARTING = 0.1  # seconds for what was written to leave the process
ENDING = 0.5  # seconds for children to end at a second signal

OPTIONS = (
    # By default Linux lets two servers listen on one port, and deals connections out between them.
    ("grpc.so_reuseport", 0),
    # Pings find a client that vanished without a word (lost host, silent NAT). Without them the engine would generate
    # up to max_tokens for it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Clients ping too, also on idle connections, and no data flows while a request waits or prefills. By default gRPC
    # tolerates one ping in five minutes; after more it closes the connection, with all its streams, as
    # ENHANCE_YOUR_CALM.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # gRPC silently ignores the name with "recv" in it
    ("grpc.http2.max_ping_strikes", 0),
    # An idle connection takes tens of kilobytes and a descriptor. More are closed at once.
    ("grpc.max_allowed_incoming_connections", 4096),
)
# Calls at once, of all services; more get RESOURCE_EXHAUSTED. Twice as many as requests that may be unfinished: others
# watch, ask or are refused.
MAX_CALLS = 8192


SERVICERS = (GenerationServicer, AdapterServicer, EngineServicer)


class Server:
    """A server on one port. Create it inside a running event loop."""

    def __init__(
        self,
        backend: ServedEngine,
        host: str,
        port: int,
        times: ServerTimes = DEFAULTS,
        identities: Identities = ANYBODY,
        http: HttpOptions | None = None,
    ) -> None:
        """http: None serves gRPC only."""
        self._backend, self._times = backend, times
        self._identities = identities
        self._following: asyncio.Task[None] | None = None  # the files behind the identities
        self._has_started = False  # whether the backend has started
        self._is_leaving = False  # whether clients are to look elsewhere
        self._host, self._port = host, port
        max_model_len = backend.max_model_len
        self._calls = Calls(identities, largest_message(max_model_len), times.slow_reader_timeout)
        # gRPC allocates memory for a message before the server can check it.
        largest = ("grpc.max_receive_message_length", largest_of_all(max_model_len))
        self._server = grpc.aio.server(options=(*OPTIONS, largest), maximum_concurrent_rpcs=MAX_CALLS)
        services = [servicer(self._engine_of) for servicer in SERVICERS]
        names = [service.NAME for service in services]
        self._health = health.Health(names)
        self._health.add_to(self._server)
        self._server.add_generic_rpc_handlers(tuple(service.handler(self._calls) for service in services))
        reflection.enable_server_reflection((*names, health.NAME, reflection.SERVICE_NAME), self._server)
        self._http: HttpDoor | None = None
        if http is not None:
            self._http = HttpDoor(http, max_model_len, times, identities, self._engine_of, self._is_ready)

    @property
    def address(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    @property
    def addresses(self) -> list[str]:
        """Those of gRPC and of HTTP, if it is served."""
        return [self.address] if self._http is None else [self.address, self._http.address]

    def _is_ready(self) -> bool:
        return self._has_started and not self._is_leaving and self._backend.is_serving

    async def start(self) -> None:
        """Begins to listen, with the status NOT_SERVING. Port 0 takes a free one. Raises OSError if the port is not
        available."""
        await self._health.set(False)
        try:
            self._port = self._server.add_insecure_port(self.address)
        except RuntimeError:
            raise OSError(
                f"cannot listen on {self.address}: the port is taken, or the host is no address of this machine"
            ) from None
        await self._server.start()
        if self._http is not None:
            self._http.start()

    def _engine_of(self, caller: Caller) -> CallersEngine:
        if not self._has_started:
            raise EngineUnavailable("the engine is starting")
        return CallersEngine(self._backend, caller)

    async def follow_backend(self) -> None:
        """Passes requests to the engine, which has started, and reports its health from now on."""
        self._has_started = True
        self._backend.on_serving_change(self._health.set_soon)
        await self._health.set(self._backend.is_serving)
        if self._identities.shared_prompts:
            await self._backend.share_prompts(self._identities.shared_prompts)
        self._following = asyncio.create_task(self._follow_identities())

    async def _follow_identities(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            if await asyncio.to_thread(self._identities.refresh):
                with suppress(EngineUnavailable):  # the server drains
                    await self._backend.share_prompts(self._identities.shared_prompts)

    async def drain(self) -> None:
        """Says NOT_SERVING; refuses new calls with UNAVAILABLE, until the process ends; finishes running requests, or
        ends them with UNAVAILABLE when shutdown_timeout has passed; ends the engine, while slow readers have their last
        words."""
        loop, times = asyncio.get_running_loop(), self._times
        end = loop.time() + times.shutdown_timeout
        self._is_leaving = True
        await self._health.drain()
        await asyncio.sleep(min(times.drain_grace, times.shutdown_timeout))
        await self._backend.drain(max(end - loop.time(), 0.0))
        shutdown = self._backend.shutdown(ENGINE_GRACE)
        await asyncio.gather(self._wait_for_none(), _within(LAST_WORDS, shutdown))
        await asyncio.sleep(PARTING)

    async def _wait_for_none(self) -> None:
        await self._calls.wait_for_none(LAST_WORDS)
        if self._http is not None:
            await self._http.wait_for_none(LAST_WORDS)

    async def stop(self) -> None:
        """Stops at once and cancels running calls. Idempotent."""
        if self._following is not None:
            self._following.cancel()
        if self._http is not None:
            await self._http.stop()
        await self._server.stop(None)


async def serve(
    backend: ServedEngine,
    host: str,
    port: int,
    announce: Callable[[str], None],
    times: ServerTimes = DEFAULTS,
    leave: Callable[[int], object] | None = None,
    identities: Identities = ANYBODY,
    http: HttpOptions | None = None,
) -> int:
    """Runs until SIGTERM or SIGINT, then drains; a second signal stops at once. Returns the exit status of the process.

    announce: called with the addresses of all doors once the engine serves. leave: called with the exit status when all
    is done but to close the connections. A process that ends there leaves that to the kernel, and a client takes it for
    UNAVAILABLE; gRPC's own way answers calls that come at this moment with CANCELLED. Raises the errors of the engine's
    start, or OSError.
    """
    server = Server(backend, host, port, times, identities, http)
    try:
        async with _signals() as (first, second):
            if await _finished(_live(server, backend, announce, first), before=second):
                status = 0
            else:
                status = 1
                await _within(ENDING, _end_now(backend))
                await asyncio.sleep(PARTING)
        if leave is not None:
            leave(status)
        return status
    finally:
        await server.stop()


async def _live(
    server: Server, backend: ServedEngine, announce: Callable[[str], None], signalled: asyncio.Event
) -> None:
    """The life of a server until it is drained."""
    try:
        await server.start()
        if await _finished(backend.start(), before=signalled):
            await server.follow_backend()
            _keep_what_the_start_made()
            announce(" and ".join(server.addresses))
            await signalled.wait()
            await server.drain()
        else:
            await backend.shutdown()
    except Exception:
        await backend.shutdown()
        raise


async def _end_now(backend: ServedEngine) -> None:
    with suppress(EngineUnavailable):  # it has not started
        await backend.drain(0)
    await backend.shutdown(0)


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Cancels work that takes longer."""
    with suppress(TimeoutError):
        await asyncio.wait_for(work, seconds)


def _keep_what_the_start_made() -> None:
    """Takes all present objects out of the sight of the garbage collection, which would look at each of them for tens
    of milliseconds again and again."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def _signals() -> AsyncGenerator[tuple[asyncio.Event, asyncio.Event], None]:
    """Yields an event for the first signal that asks to stop, and one for the second."""
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
    """Returns whether `work` ended before the event; if it did not, cancels it and gives it a moment. Raises the error
    of `work`."""
    task, event = asyncio.ensure_future(work), asyncio.ensure_future(before.wait())
    try:
        await asyncio.wait({task, event}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        return task.done()
    finally:
        for unfinished in (task, event):
            unfinished.cancel()
        await asyncio.wait({task, event}, timeout=ENDING)
