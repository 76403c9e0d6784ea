"""Listener: uvicorn on one port, in a running event loop. Owns the limits of connections and of their headers.

Knows no route. It takes no signals: the server that owns it says when it ends.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..tls import Tls
from .exchange import ABORT

MAX_CONNECTIONS = 4096  # as many as over gRPC; more are closed at once
MAX_HEADER_BYTES, MAX_HEADERS = 32 << 10, 128  # of one request, its target included
HEADER_TIMEOUT = 20.0  # seconds for the head of a request, the first one of a connection included
KEEP_ALIVE = 75  # seconds that a connection may be idle: longer than most clients and proxies keep one
BACKLOG = 2048
# A client that vanished without a word (lost host, silent NAT) is found within a minute, as over gRPC.
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class LimitedProtocol(HttpToolsProtocol):
    """The parser has no limits of its own: a head of any size would be kept, and be waited for at any length."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_header_bytes = 0
        self._head_alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_alarm()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]
        self._num_header_bytes = 0
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name + value)
        if len(self.headers) >= MAX_HEADERS:
            raise ValueError(f"more than {MAX_HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_alarm()
        super().on_headers_complete()

    def _count(self, part: bytes) -> None:
        """Raises ValueError, which the parser reports as a request that is not valid."""
        self._num_header_bytes += len(part)
        if self._num_header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"more than {MAX_HEADER_BYTES} bytes of headers")

    def _expect_head(self) -> None:
        self._stop_alarm()
        self._head_alarm = self.loop.call_later(HEADER_TIMEOUT, self.transport.abort)

    def _stop_alarm(self) -> None:
        if self._head_alarm is not None:
            self._head_alarm.cancel()
            self._head_alarm = None


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listener:
    def __init__(self, app: Callable[..., Any], host: str, port: int, tls: Tls | None = None) -> None:
        self._host, self._port = host, port
        self._socket: socket.socket | None = None
        config = uvicorn.Config(
            app,
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            loop="none",
            interface="asgi3",
            access_log=False,
            log_config=None,
            log_level="error",
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=1,
        )
        if tls is not None:
            config.load()
            config.ssl = tls.ssl_context()
        self._scheme = "http" if tls is None else "https"
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._scheme}://{host}:{self._port}"

    def start(self) -> None:
        """Begins to listen. Port 0 takes a free one. Raises OSError if the port is not available."""
        self._socket = _bound(self._host, self._port)
        self._port = self._socket.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def stop(self) -> None:
        """Ends at once, with what is being answered. Idempotent."""
        serving, self._serving = self._serving, None
        if serving is None:
            return
        self._server.should_exit = self._server.force_exit = True
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        with suppress(asyncio.CancelledError):
            await serving


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for option in KEEPALIVE:
            listening.setsockopt(*option)
        listening.bind(address)
        listening.listen(BACKLOG)  # a port that is taken shows here at the latest
    except OSError:
        listening.close()
        raise OSError(
            f"cannot listen on {host}:{port}: the port is taken, or the host is no address of this machine"
        ) from None
    listening.setblocking(False)
    return listening
