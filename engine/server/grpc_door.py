"""GrpcDoor: the gRPC services at one address, for the callers of some identities. Owns the options of gRPC's server."""

import os
from collections.abc import Callable

import grpc
from grpc_reflection.v1alpha import reflection

from ..identity.caller import Caller
from ..identity.identities import Identities
from . import health
from .callers_engine import CallersEngine
from .message_sizes import largest_message, largest_of_all
from .rpc import Calls
from .service import AdapterServicer, EngineServicer, GenerationServicer
from .times import ServerTimes
from .tls import Tls

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
NAMES = tuple(servicer.NAME for servicer in SERVICERS)
UNIX = "unix:"
MASK = 0o177  # of a unix socket: for its owner only


class GrpcDoor:
    def __init__(
        self,
        address: str,
        identities: Identities,
        engine_of: Callable[[Caller], CallersEngine],
        health_of_all: health.Health,
        max_model_len: int,
        times: ServerTimes,
        tls: Tls | None = None,
    ) -> None:
        """address: HOST:PORT, of which port 0 takes a free one, or unix:PATH. engine_of: raises EngineUnavailable until
        the engine has started."""
        self.address = address
        self._tls = tls
        self._calls = Calls(identities, largest_message(max_model_len), times.slow_reader_timeout)
        # gRPC allocates memory for a message before the server can check it.
        largest = ("grpc.max_receive_message_length", largest_of_all(max_model_len))
        self._server = grpc.aio.server(options=(*OPTIONS, largest), maximum_concurrent_rpcs=MAX_CALLS)
        health_of_all.add_to(self._server)
        handlers = tuple(servicer(engine_of).handler(self._calls) for servicer in SERVICERS)
        self._server.add_generic_rpc_handlers(handlers)
        reflection.enable_server_reflection((*NAMES, health.NAME, reflection.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """Begins to listen. Raises OSError if the address is not available."""
        try:
            port = self._bind()
        except RuntimeError:
            raise OSError(f"cannot listen on {self.address}: it is taken, or is no address of this machine") from None
        if not self.address.startswith(UNIX):
            self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await self._server.start()

    def _bind(self) -> int:
        if self._tls is not None:
            return int(self._server.add_secure_port(self.address, self._tls.grpc_credentials()))
        if not self.address.startswith(UNIX):
            return int(self._server.add_insecure_port(self.address))
        mask = os.umask(MASK)
        try:
            return int(self._server.add_insecure_port(self.address))
        finally:
            os.umask(mask)

    async def wait_for_none(self, seconds: float) -> None:
        """Returns when all calls are answered, at the latest after these seconds."""
        await self._calls.wait_for_none(seconds)

    async def stop(self) -> None:
        """Stops at once and cancels running calls. Idempotent."""
        await self._server.stop(None)
