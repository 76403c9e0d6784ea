"""BloraTarget: a blora server, asked over gRPC with streams."""

import asyncio
from itertools import cycle
from typing import Any, Self

import grpc

from blora.proto.rich_errors import details_of
from blora.proto.v1 import generation_pb2

from ..driver import CANCELLED, Clock
from ..plan import Planned
from ..record import OK, Record

METHOD = "/blora.v1.GenerationService/GenerateStream"
OPTIONS = (
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.use_local_subchannel_pool", 1),  # or all channels to one address would share a connection
)
LEAST_TIMEOUT = 1e-3  # seconds; a request whose deadline has passed is sent all the same


class BloraTarget:
    """Use as `async with BloraTarget("host:port") as target`. Requests take the connections in turn."""

    def __init__(self, address: str, num_connections: int = 1) -> None:
        self._address = address
        self._num_connections = num_connections

    async def __aenter__(self) -> Self:
        self._channels = [grpc.aio.insecure_channel(self._address, OPTIONS) for _ in range(self._num_connections)]
        self._methods = cycle([_method(channel) for channel in self._channels])
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def ask(self, record: Record, clock: Clock) -> None:
        planned = record.planned
        request = generation_pb2.GenerateStreamRequest(request=message_of(planned)).SerializeToString()
        metadata = (("x-tenant-id", planned.tenant),) if planned.tenant else ()
        record.sent = now = clock()
        timeout = None if planned.deadline is None else max(planned.seconds + planned.deadline - now, LEAST_TIMEOUT)
        call = next(self._methods)(request, timeout=timeout, metadata=metadata)
        try:
            await _read(call, record, clock)
        except grpc.aio.AioRpcError as error:
            record.note_end(clock(), error.code().name, error.details() or "")
            record.retry_after = details_of(error).retry_after
        finally:
            call.cancel()


async def _read(call: Any, record: Record, clock: Clock) -> None:
    pause, cancel_after = record.planned.read_pause, record.planned.cancel_after
    while (response := await call.read()) is not grpc.aio.EOF:
        note(response, record, clock())
        if cancel_after is not None and record.num_tokens >= cancel_after:
            record.note_end(clock(), CANCELLED, "the client left")
            return
        if pause:
            await asyncio.sleep(pause)
    record.note_end(clock(), OK)


def note(response: generation_pb2.GenerateStreamResponse, record: Record, now: float) -> None:
    """Adds the news of a message to the record."""
    if response.HasField("prompt"):
        record.request_id = response.prompt.request_id
        record.told_prompt_tokens = response.prompt.num_prompt_tokens
    count = 0
    for sample in response.samples:
        answer = record.answer(sample.index)
        answer.token_ids.extend(sample.token_ids)
        answer.logprobs.extend(position.token.logprob for position in sample.logprobs)
        answer.text += sample.text
        count += len(sample.token_ids)
        if sample.finish_reason:
            name = generation_pb2.FinishReason.Name(sample.finish_reason)
            answer.finish_reason = name.removeprefix("FINISH_REASON_")
    if count:
        record.note_tokens(now, count)


def message_of(planned: Planned) -> generation_pb2.GenerateRequest:
    sampling = generation_pb2.SamplingParams(max_tokens=planned.max_tokens, **planned.sampling)
    prompt: dict[str, Any] = {"text": planned.prompt}
    if not isinstance(planned.prompt, str):
        prompt = {"token_ids": generation_pb2.TokenIds(ids=planned.prompt)}
    return generation_pb2.GenerateRequest(
        **prompt, adapter=planned.adapter, priority=planned.priority, sampling=sampling
    )


def _method(channel: grpc.aio.Channel) -> Any:
    return channel.unary_stream(METHOD, response_deserializer=generation_pb2.GenerateStreamResponse.FromString)
