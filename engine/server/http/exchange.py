"""Exchange: one request of HTTP and its answer. Endpoint: an ASGI application that answers with a method.

Owns what every route has in common: the size of a body, errors, a client that leaves, one that reads too slowly. Knows
no route.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

from ...errors import DeadlineExceeded, InvalidRequest, MessageTooLarge, ReaderTooSlow
from ...front_end.trace_context import NAMES, note_trace
from ..generation import checked_label, is_label, unique_request_id
from ..open_calls import OpenCalls
from .errors import answer_to
from .field_names import OF_EVERY_BODY, Names, renamed

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

BODY_TIMEOUT = 30.0  # seconds for a client to send its body
ID_HEADER, JSON, EVENTS = b"x-request-id", b"application/json", b"text/event-stream; charset=utf-8"
ABORT = "blora.abort"  # the extension of a scope that ends its connection at once

logger = logging.getLogger(__name__)


class Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send, slow_reader_timeout: float) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._slow_reader_timeout = slow_reader_timeout
        self.has_begun = False  # whether a part of the answer is under way
        self.field_names: Names = OF_EVERY_BODY  # the client's; a route sets them when it has read the body

    @property
    def path_parameters(self) -> MutableMapping[str, str]:
        parameters: MutableMapping[str, str] = self._scope["path_params"]
        return parameters

    def header(self, name: bytes) -> str | None:
        """name: in lower case."""
        return next(iter(self.headers(name)), None)

    def headers(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for key, value in self._scope["headers"] if key == name]

    def label(self, in_body: str | None) -> str:
        """Returns the client's id of the request, or "". in_body: the one in its body; that of the header wins. Raises
        InvalidRequest."""
        if in_header := self.header(ID_HEADER):
            return checked_label("X-Request-Id", in_header, "latin-1")
        return checked_label("request_id", in_body or "")

    def deadline(self) -> float | None:
        """Returns the time of the event loop at which the client stops waiting. Raises InvalidRequest."""
        text = self.header(b"x-request-timeout-ms")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and int(text[:19]) > 0 and len(text) < 19):
            raise InvalidRequest("X-Request-Timeout-Ms", f"{text!r:.80} is not a number of milliseconds above 0")
        return asyncio.get_running_loop().time() + int(text) / 1e3

    # The request.

    async def body(self, most: int) -> bytes:
        """Raises MessageTooLarge before more than these bytes are kept, DeadlineExceeded."""
        announced = self.header(b"content-length") or "0"
        _check_size(int(announced) if announced.isdigit() else 0, most)
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                return await self._read(most)
        except TimeoutError:
            raise DeadlineExceeded(f"the body did not come within {BODY_TIMEOUT:g} s") from None

    async def _read(self, most: int) -> bytes:
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            _check_size(size, most)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def wait_until_gone(self) -> None:
        """Returns when the client has left. After the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # The answer.

    async def answer(self, body: bytes, status: int = 200, headers: Headers = (), kind: bytes = JSON) -> None:
        await self._begin(status, [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers])
        await self._write(body, more_body=False)

    async def begin_events(self) -> None:
        """Begins a stream of events. Proxies are asked not to keep them back."""
        kind = (b"content-type", EVENTS)
        await self._begin(200, [kind, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")])

    async def write(self, events: bytes) -> None:
        """Raises ReaderTooSlow."""
        await self._write(events, more_body=True)

    async def end(self, events: bytes = b"") -> None:
        await self._write(events, more_body=False)

    async def _begin(self, status: int, headers: Headers) -> None:
        self.has_begun = True
        label = self.header(ID_HEADER)
        shown = label if label is not None and is_label(label, "latin-1") else unique_request_id("")
        own = (ID_HEADER, shown.encode("latin-1"))
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, own]})

    async def _write(self, body: bytes, *, more_body: bool) -> None:
        try:
            async with asyncio.timeout(self._slow_reader_timeout):
                await self._send({"type": "http.response.body", "body": body, "more_body": more_body})
        except TimeoutError:
            raise ReaderTooSlow(f"the client has read nothing for {self._slow_reader_timeout:g} s") from None

    def abort(self) -> None:
        """Ends the connection; what waits for the client is lost."""
        end = self._scope.get("extensions", {}).get(ABORT)
        if end is not None:
            end()


Method = Callable[[Exchange], Coroutine[Any, Any, None]]


class Endpoint:
    """Answers requests with a method, whose errors become answers. A client that leaves cancels it."""

    def __init__(self, method: Method, calls: OpenCalls, slow_reader_timeout: float) -> None:
        self._method, self._calls = method, calls
        self._slow_reader_timeout = slow_reader_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._slow_reader_timeout)
        note_trace((name, value) for name in NAMES for value in exchange.headers(name.encode()))
        with self._calls.one(), suppress(asyncio.CancelledError):
            try:
                await self._method(exchange)
            except Exception as error:
                await _refuse(exchange, error)


async def _refuse(exchange: Exchange, error: Exception) -> None:
    if exchange.has_begun:  # and no other status can be told
        logger.warning("an answer was broken off: %s", error)
        exchange.abort()
        return
    status, body, headers = answer_to(renamed(error, exchange.field_names))
    with suppress(ReaderTooSlow):
        await exchange.answer(body, status, headers)


async def unless_gone(exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
    """Does work for a client, after the body has been read. When the client leaves, the work is cancelled, and has
    ended when this returns."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(exchange.wait_until_gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise MessageTooLarge(f"the body has {size} bytes or more; at most {most} are read")
