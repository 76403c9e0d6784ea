"""Turns a method that takes and returns messages into a gRPC handler: parsing, status codes, cancellation.

Knows no service.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from .convert import parse
from .message_sizes import check_size
from .status import retry_metadata, status_of

M = TypeVar("M", bound=Message)
TENANT_KEY = "x-tenant-id"


# Handlers are registered without a deserializer. With one, gRPC would answer INTERNAL to bytes that are no message, and
# a client's mistake would look like the server's.


class Response(Protocol):
    """A message, or what is made in pieces and has a message's bytes."""

    def SerializeToString(self) -> bytes: ...


# most_bytes: of the message. facts: functions of the call's context; the method gets their results after the message.


def unary(
    request_type: type[M],
    method: Callable[..., Awaitable[Response]],
    most_bytes: int,
    *facts: Callable[[grpc.aio.ServicerContext], Any],
) -> grpc.RpcMethodHandler:
    async def handle(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            check_size(data, most_bytes)
            response = await method(parse(request_type, data), *(fact(context) for fact in facts))
            return response.SerializeToString()
        except Exception as error:
            await _refuse(context, error)

    return grpc.unary_unary_rpc_method_handler(handle)


def streaming(
    request_type: type[M],
    method: Callable[..., AsyncGenerator[Message, None]],
    most_bytes: int,
    *facts: Callable[[grpc.aio.ServicerContext], Any],
) -> grpc.RpcMethodHandler:
    # The handler is a coroutine that writes, and no async generator. So a client that leaves raises CancelledError in
    # this frame, wherever it waits. The engine's generator then closes before the handler ends, not when it is
    # collected.
    async def handle(data: bytes, context: grpc.aio.ServicerContext) -> None:
        try:
            check_size(data, most_bytes)
            message = parse(request_type, data)
            async with aclosing(method(message, *(fact(context) for fact in facts))) as responses:
                async for response in responses:
                    await context.write(response.SerializeToString())
        except Exception as error:
            await _refuse(context, error)

    return grpc.unary_stream_rpc_method_handler(handle)


def tenant_of(context: grpc.aio.ServicerContext) -> str:
    """Returns the tenant that the call's metadata names, or "" if it names none."""
    return next((str(value) for key, value in context.invocation_metadata() or () if key == TENANT_KEY), "")


def deadline_of(context: grpc.aio.ServicerContext) -> float | None:
    """Returns the time of the event loop at which the call's deadline passes, or None if it has none."""
    remaining = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining


def collecting(
    request_type: type[M], method: Callable[[AsyncGenerator[M, None]], Awaitable[Message]]
) -> grpc.RpcMethodHandler:
    async def handle(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        try:
            async with aclosing(_parsed(request_type, requests)) as messages:
                response = await method(messages)
            return response.SerializeToString()
        except Exception as error:
            await _refuse(context, error)

    return grpc.stream_unary_rpc_method_handler(handle)


async def _parsed(request_type: type[M], requests: AsyncIterator[bytes]) -> AsyncGenerator[M, None]:
    async for data in requests:
        yield parse(request_type, data)


async def _refuse(context: Any, error: Exception) -> NoReturn:
    code, details = status_of(error)
    await context.abort(code, details, retry_metadata(error, details))
    raise error  # abort() raises; this tells the type checker
