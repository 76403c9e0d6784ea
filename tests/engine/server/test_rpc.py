"""Calls: a client that does not read ends its request, and open calls are waited for."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc
import pytest

from blora.engine.server.rpc import Calls
from blora.proto.v1 import engine_pb2

REQUEST = engine_pb2.GetInfoRequest().SerializeToString()


class Context:
    """A call whose client reads a number of messages and then stands still."""

    def __init__(self, num_read: int) -> None:
        self.num_read = num_read
        self.status: tuple[Any, ...] = ()
        self.on_done: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.on_done.append(callback)

    async def write(self, _: bytes) -> None:
        self.num_read -= 1
        if self.num_read < 0:
            await asyncio.get_running_loop().create_future()

    async def abort(self, *status: Any) -> None:
        self.status = status
        raise grpc.aio.AbortError

    def end(self) -> None:
        for callback in self.on_done:
            callback(self)


def test_a_client_that_does_not_read_ends_its_request() -> None:
    closed = []

    async def method(_: Any) -> AsyncGenerator[engine_pb2.GetInfoResponse, None]:
        try:
            while True:
                yield engine_pb2.GetInfoResponse()
        finally:
            closed.append(True)

    context = Context(num_read=3)
    handler = Calls(1000, slow_reader_timeout=0.01).streaming(engine_pb2.GetInfoRequest, method)
    with pytest.raises(grpc.aio.AbortError):
        asyncio.run(handler.unary_stream(REQUEST, context))
    assert closed == [True]
    assert context.status[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "read faster" in context.status[1]


def test_a_call_is_open_until_its_answer_has_been_sent() -> None:
    async def method(_: Any) -> engine_pb2.GetInfoResponse:
        return engine_pb2.GetInfoResponse()

    async def body() -> None:
        calls = Calls(1000, slow_reader_timeout=1.0)
        await asyncio.wait_for(calls.wait_for_none(3600), 60)
        contexts = [Context(0), Context(0)]
        handler = calls.unary(engine_pb2.GetInfoRequest, method)
        for context in contexts:
            await handler.unary_unary(REQUEST, context)
        waiting = asyncio.create_task(calls.wait_for_none(3600))
        for context in contexts:
            await asyncio.sleep(0)
            assert not waiting.done()
            context.end()
        await asyncio.wait_for(waiting, 60)
        await handler.unary_unary(REQUEST, contexts[0])
        await calls.wait_for_none(0.01)  # returns all the same

    asyncio.run(body())
