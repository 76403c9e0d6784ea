"""MetricsPort: serves an ASGI app on a port of its own, in the event loop of the server."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from .exposition import MetricsApp

PARTING = 1  # seconds for answers that are under way when the server ends


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals belong to the gRPC server, which drains."""
        yield


@asynccontextmanager
async def metrics_port(
    app: MetricsApp, host: str, port: int, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[str, None]:
    """Serves while the context is open. tls: None serves plain HTTP. Yields the address; port 0 takes a free one.
    Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port} for metrics: {error.strerror or error}") from None
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=PARTING,
    )
    if tls is not None:
        config.load()
        config.ssl = tls
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        name, number = listening.getsockname()[:2]
        yield f"[{name}]:{number}" if family == socket.AF_INET6 else f"{name}:{number}"
    finally:
        server.should_exit = True
        await serving
