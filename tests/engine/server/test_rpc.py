"""A client that has left is no error, wherever gRPC notices it first."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest

from blora.engine.errors import QueueFull
from blora.engine.identity.identities import Anybody
from blora.engine.server.rpc import Calls
from blora.proto.v1 import engine_pb2


class Gone:
    """The context of a call whose client has left."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def add_done_callback(self, _: Any) -> None: ...

    def invocation_metadata(self) -> None: ...

    async def write(self, _: bytes) -> None:
        raise self.error

    async def abort(self, *_: Any) -> None:
        raise self.error


async def answers(*_: Any) -> AsyncGenerator[engine_pb2.AbortResponse, None]:
    yield engine_pb2.AbortResponse()


async def refuses(*_: Any) -> Any:
    raise QueueFull("full")


@pytest.mark.parametrize("error", [grpc.aio.InternalError("over"), grpc.aio.UsageError("finished")], ids=["in", "us"])
def test_a_call_that_is_over_is_cancelled_and_not_logged(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        calls, request = Calls(Anybody(), 100, 10.0), engine_pb2.AbortRequest
        for handler in (calls.streaming(request, answers).unary_stream, calls.unary(request, refuses).unary_unary):
            with pytest.raises(asyncio.CancelledError):
                await handler(b"", Gone(error))

    with caplog.at_level(logging.WARNING):
        asyncio.run(body())
    assert not caplog.records
