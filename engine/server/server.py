"""Server: the doors around one engine, and their life from start to drain.

Owns the order of starting and stopping. Knows no message and no command line.
"""

import asyncio
import gc
import ipaddress
import logging
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from ..errors import EngineUnavailable
from ..identity.caller import Caller
from ..identity.identities import ANYBODY, Identities
from . import health
from .access import OPEN, Access
from .callers_engine import CallersEngine
from .engine import ServedEngine
from .grpc_door import NAMES, GrpcDoor
from .http.door import HttpDoor
from .http.options import HttpOptions
from .times import DEFAULTS, LAST_WORDS, ServerTimes
from .tls import Tls

logger = logging.getLogger(__name__)

ENGINE_GRACE = 4.0  # seconds for the engine to end by itself; that it is killed then takes a moment, too
LOOK_INTERVAL = 2.0  # seconds between looks at the files of identities and certificates
PARTING = 0.1  # seconds for what was written to leave the process
ENDING = 0.5  # seconds for children to end at a second signal
ANYBODY_LISTENS = (
    "ANYBODY WHO REACHES THIS MACHINE has all rights on this server: it listens on %s and asks nobody for a token. "
    "Give --identities or --api-key, or listen on 127.0.0.1"
)


class Server:
    """The doors around one engine. Create it inside a running event loop."""

    def __init__(
        self,
        backend: ServedEngine,
        host: str,
        port: int,
        times: ServerTimes = DEFAULTS,
        access: Access = OPEN,
        http: HttpOptions | None = None,
    ) -> None:
        """http: None serves gRPC only."""
        self._backend, self._times, self._access = backend, times, access
        self._following: asyncio.Task[None] | None = None  # the files behind the access
        self._has_started = False  # whether the backend has started
        self._is_leaving = False  # whether clients are to look elsewhere
        max_model_len = backend.max_model_len
        self._health = health.Health(NAMES)

        def grpc_door(address: str, identities: Identities, tls: Tls | None) -> GrpcDoor:
            return GrpcDoor(address, identities, self._engine_of, self._health, max_model_len, times, tls)

        self._grpc = grpc_door(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", access.public(), access.tls)
        self._operators: GrpcDoor | None = None
        if access.operators_address is not None:
            self._operators = grpc_door(access.operators_address, ANYBODY, None)
        self._http: HttpDoor | None = None
        if http is not None:
            self._http = HttpDoor(
                http, max_model_len, times, access.public(), self._engine_of, self._is_ready, access.tls
            )
        if access.identities is ANYBODY:
            for open_host in dict.fromkeys((host, *([] if http is None else [http.host]))):
                if not _is_loopback(open_host):
                    logger.warning(ANYBODY_LISTENS, open_host)

    @property
    def address(self) -> str:
        return self._grpc.address

    @property
    def addresses(self) -> list[str]:
        """Those of gRPC, of HTTP, if it is served, and of the operators, if they have one."""
        http = [] if self._http is None else [self._http.address]
        return [self.address, *http, *([] if self._operators is None else [f"{self._operators.address} (operators)"])]

    def _is_ready(self) -> bool:
        return self._has_started and not self._is_leaving and self._backend.is_serving

    async def start(self) -> None:
        """Begins to listen, with the status NOT_SERVING. Port 0 takes a free one. Raises OSError if the port is not
        available."""
        await self._health.set(False)
        for door in self._grpc_doors():
            await door.start()
        if self._http is not None:
            self._http.start()

    def _grpc_doors(self) -> list[GrpcDoor]:
        return [self._grpc] if self._operators is None else [self._grpc, self._operators]

    def _engine_of(self, caller: Caller) -> CallersEngine:
        if not self._has_started:
            raise EngineUnavailable("the engine is starting")
        return CallersEngine(self._backend, caller)

    async def follow_backend(self) -> None:
        """Passes requests to the engine, which has started, and reports its health from now on."""
        self._has_started = True
        self._backend.on_serving_change(self._health.set_soon)
        await self._health.set(self._backend.is_serving)
        if self._access.identities.shared_prompts:
            await self._backend.share_prompts(self._access.identities.shared_prompts)
        self._following = asyncio.create_task(self._follow_identities())

    async def _follow_identities(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            if await asyncio.to_thread(self._access.refresh):
                with suppress(EngineUnavailable):  # the server drains
                    await self._backend.share_prompts(self._access.identities.shared_prompts)

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
        doors: list[GrpcDoor | HttpDoor] = [*self._grpc_doors(), *([] if self._http is None else [self._http])]
        await asyncio.gather(*(door.wait_for_none(LAST_WORDS) for door in doors))

    async def stop(self) -> None:
        """Stops at once and cancels running calls. Idempotent."""
        if self._following is not None:
            self._following.cancel()
        if self._http is not None:
            await self._http.stop()
        for door in self._grpc_doors():
            await door.stop()


async def serve(
    backend: ServedEngine,
    host: str,
    port: int,
    announce: Callable[[str], None],
    times: ServerTimes = DEFAULTS,
    leave: Callable[[int], object] | None = None,
    access: Access = OPEN,
    http: HttpOptions | None = None,
) -> int:
    """Runs until SIGTERM or SIGINT, then drains; a second signal stops at once. Returns the exit status of the process.

    announce: called with the addresses of all doors once the engine serves. leave: called with the exit status when all
    is done but to close the connections. A process that ends there leaves that to the kernel, and a client takes it for
    UNAVAILABLE; gRPC's own way answers calls that come at this moment with CANCELLED. Raises the errors of the engine's
    start, or OSError.
    """
    server = Server(backend, host, port, times, access, http)
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
