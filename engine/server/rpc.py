"""Turns a method that takes and returns messages into a gRPC handler: who calls, parsing, status codes, cancellation.

Knows no service.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from ..errors import InvalidRequest, ReaderTooSlow
from ..front_end.trace_context import note_trace
from ..identity.caller import Caller
from ..identity.identities import Identities, bearer
from .convert import parse
from .message_sizes import check_size
from .open_calls import OpenCalls
from .status import status_of, trailers

M = TypeVar("M", bound=Message)
Fact = Callable[[grpc.aio.ServicerContext], Any]
TENANT_KEYS = ("x-tenant-id", "x-llm-d-inference-fairness-id")  # the second one is that of llm-d's gateways
AUTHORIZATION_KEY = "authorization"
# What gRPC raises in a call of a client that is gone, where the cancellation has not arrived yet.
CALL_IS_OVER = (grpc.aio.InternalError, grpc.aio.UsageError)


# Handlers are registered without a deserializer. With one, gRPC would answer INTERNAL to bytes that are no message, and
# a client's mistake would look like the server's.


class Response(Protocol):
    """A message, or what is made in pieces and has a message's bytes."""

    def SerializeToString(self) -> bytes: ...


class Calls:
    """Makes the handlers of all methods of a server, and knows how many calls are being answered."""

    def __init__(self, identities: Identities, most_bytes: int, slow_reader_timeout: float) -> None:
        """most_bytes: of a message, but for the parts of a stream of messages. slow_reader_timeout: seconds that a
        client may let a stream stand still."""
        self._identities = identities
        self._most_bytes, self._slow_reader_timeout = most_bytes, slow_reader_timeout
        self._open = OpenCalls()

    async def wait_for_none(self, seconds: float) -> None:
        """Returns when the answers of all calls are under way to their clients, at the latest after these seconds."""
        await self._open.wait_for_none(seconds)

    # A method gets the message and the caller, then the results of facts, which are functions of the call's context.

    def unary(
        self, request_type: type[M], method: Callable[..., Awaitable[Response]], *facts: Fact
    ) -> grpc.RpcMethodHandler:
        async def handle(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self._begin(context)
            try:
                caller = self._caller(context)  # before anything of a stranger is parsed
                response = await method(self._parse(request_type, data), caller, *(fact(context) for fact in facts))
                return response.SerializeToString()
            except Exception as error:
                await _refuse(context, error)

        return grpc.unary_unary_rpc_method_handler(handle)

    def streaming(
        self, request_type: type[M], method: Callable[..., AsyncGenerator[Response, None]], *facts: Fact
    ) -> grpc.RpcMethodHandler:
        # The handler is a coroutine that writes, and no async generator. So a client that leaves raises CancelledError
        # in this frame, wherever it waits. The engine's generator then closes before the handler ends, not when it is
        # collected.
        async def handle(data: bytes, context: grpc.aio.ServicerContext) -> None:
            self._begin(context)
            try:
                caller = self._caller(context)
                message = self._parse(request_type, data)
                async with aclosing(method(message, caller, *(fact(context) for fact in facts))) as responses:
                    async for response in responses:
                        await self._write(context, response)
            except Exception as error:
                await _refuse(context, error)

        return grpc.unary_stream_rpc_method_handler(handle)

    def collecting(
        self, request_type: type[M], method: Callable[[AsyncGenerator[M, None], Caller], Awaitable[Response]]
    ) -> grpc.RpcMethodHandler:
        async def handle(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
            self._begin(context)
            try:
                caller = self._caller(context)
                async with aclosing(_parsed(request_type, requests)) as messages:
                    response = await method(messages, caller)
                return response.SerializeToString()
            except Exception as error:
                await _refuse(context, error)

        return grpc.stream_unary_rpc_method_handler(handle)

    def exchanging(
        self, request_type: type[M], method: Callable[..., AsyncGenerator[Response, None]], *facts: Fact
    ) -> grpc.RpcMethodHandler:
        async def handle(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
            self._begin(context)
            try:
                caller = self._caller(context)
                async with (
                    aclosing(self._parsed_one_by_one(request_type, requests)) as messages,
                    aclosing(method(messages, caller, *(fact(context) for fact in facts))) as responses,
                ):
                    async for response in responses:
                        await self._write(context, response)
            except Exception as error:
                await _refuse(context, error)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _parsed_one_by_one(
        self, request_type: type[M], requests: AsyncIterator[bytes]
    ) -> AsyncGenerator[M, None]:
        async for data in requests:
            yield self._parse(request_type, data)

    def _caller(self, context: grpc.aio.ServicerContext) -> Caller:
        """Raises Unauthenticated, PermissionDenied."""
        return self._identities.of(token_of(context), tenant_of(context))

    def _parse(self, request_type: type[M], data: bytes) -> M:
        check_size(data, self._most_bytes)
        return parse(request_type, data)

    def _begin(self, context: grpc.aio.ServicerContext) -> None:
        self._open.begin()
        note_trace(context.invocation_metadata() or ())
        context.add_done_callback(self._end)  # comes after the answer, which a client may take slowly

    def _end(self, _: grpc.aio.ServicerContext) -> None:
        self._open.end()

    async def _write(self, context: grpc.aio.ServicerContext, response: Response) -> None:
        """Raises ReaderTooSlow."""
        try:
            async with asyncio.timeout(self._slow_reader_timeout):
                await context.write(response.SerializeToString())
        except TimeoutError:
            raise ReaderTooSlow(
                f"the client has read nothing for {self._slow_reader_timeout:g} s while messages of this stream waited "
                "for it, so the request was ended; read faster, or ask for less"
            ) from None


def token_of(context: grpc.aio.ServicerContext) -> str | None:
    """Returns the token in the call's metadata, or None if there is none."""
    return bearer(_values(context, AUTHORIZATION_KEY))


def tenant_of(context: grpc.aio.ServicerContext) -> str:
    """Returns the tenant that the call's metadata names, or "" if it names none. Raises InvalidRequest if it names
    several."""
    named = {value for value in _values(context, *TENANT_KEYS) if value}
    if len(named) > 1:
        raise InvalidRequest("tenant", f"several are named in {' and '.join(TENANT_KEYS)}; name one")
    return next(iter(named), "")


def _values(context: grpc.aio.ServicerContext, *keys: str) -> list[str]:
    return [str(value) for key, value in context.invocation_metadata() or () if key in keys]


def deadline_of(context: grpc.aio.ServicerContext) -> float | None:
    """Returns the time of the event loop at which the call's deadline passes, or None if it has none."""
    return time_after(context.time_remaining())


def time_after(seconds: float | None) -> float | None:
    """Returns the time of the event loop after so many seconds."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


async def _parsed(request_type: type[M], requests: AsyncIterator[bytes]) -> AsyncGenerator[M, None]:
    async for data in requests:
        yield parse(request_type, data)


async def _refuse(context: Any, error: Exception) -> NoReturn:
    try:
        if isinstance(error, CALL_IS_OVER):
            raise error
        code, details = status_of(error)
        # The status comes after the messages that wait for the client. If it never reads them, this frame is all that
        # is left of the request, until the connection ends.
        await context.abort(code, details, trailers(error, code, details))
    except CALL_IS_OVER as over:  # the client has left, which is no error of the server
        raise asyncio.CancelledError from over
    raise error  # abort() raises; this tells the type checker
