"""From a method that takes and gives messages to a gRPC handler: parsing, status codes, cancellation.

Knows no service.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import Message

from .convert import parse
from .status import status_of

M = TypeVar("M", bound=Message)


# Handlers are registered without a deserializer: given one, gRPC answers INTERNAL to bytes that are no message, and
# a client's mistake would look like the server's.


def unary(request_type: type[M], method: Callable[[M], Awaitable[Message]]) -> grpc.RpcMethodHandler:
    async def handle(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            response = await method(parse(request_type, data))
            return response.SerializeToString()
        except Exception as error:
            await _refuse(context, error)

    return grpc.unary_unary_rpc_method_handler(handle)


def streaming(request_type: type[M], method: Callable[[M], AsyncGenerator[Message, None]]) -> grpc.RpcMethodHandler:
    # A coroutine that writes, and no async generator: a client that leaves then raises CancelledError in this frame,
    # wherever it waits, and the engine's generator is closed before the handler ends, not when it is collected.
    async def handle(data: bytes, context: grpc.aio.ServicerContext) -> None:
        try:
            async with aclosing(method(parse(request_type, data))) as responses:
                async for response in responses:
                    await context.write(response.SerializeToString())
        except Exception as error:
            await _refuse(context, error)

    return grpc.unary_stream_rpc_method_handler(handle)


async def _refuse(context: Any, error: Exception) -> NoReturn:
    code, details = status_of(error)
    await context.abort(code, details)
    raise error  # abort() raises; this tells the type checker
