"""The way of a request for tokens over HTTP, the same for chat and completions: to the engine, and back in one answer
or in a stream of events.

A shape says what the answer looks like. Knows no field of a request.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from blora.scheduler import SamplingParams

from ...errors import InvalidRequest, ReaderTooSlow
from ...front_end.adapter_choice import Adapter
from ...outputs import RequestOutput
from ..callers_engine import CallersEngine
from ..generation import Outcome, collected, unique_request_id
from ..pieces import cost, pieces
from ..status import RequestFailed
from .answers import Usage, UsageCount
from .errors import error_body, http_status, parameter_of
from .exchange import Exchange
from .field_names import renamed
from .requests import GenerationBody
from .site import Site, now
from .sse import DONE, raw_event


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all parts of an answer repeat."""

    id: str
    created: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One call of the engine's `stream`."""

    head: Head
    prompts: Sequence[Any]
    sampling: SamplingParams
    adapter: Adapter
    priority: int
    engine: CallersEngine
    deadline: float | None
    is_streamed: bool
    comes_in_parts: bool  # whether parts of an answer that is given at once are worked on while they come


class Shape(Protocol):
    usage: UsageCount

    def add(self, piece: RequestOutput) -> None:
        """Keeps a part of an answer that is given at once."""

    def answer(self, usage: Usage) -> Any: ...

    def events(self, piece: RequestOutput, usage: UsageCount) -> bytes:
        """Returns the events of a part of a stream."""

    def last_events(self, usage: UsageCount) -> bytes: ...


def generation(
    site: Site,
    exchange: Exchange,
    engine: CallersEngine,
    body: GenerationBody,
    kind: str,
    prompts: Sequence[Any],
    sampling: SamplingParams,
    comes_in_parts: bool = False,
) -> Generation:
    """kind: the first part of the ids of such answers. Raises InvalidRequest."""
    label = unique_request_id(exchange.label(body.request_id))
    return Generation(
        head=Head(id=f"{kind}-{label}", created=now(), model=site.names.shown(body.model, body.lora)),
        prompts=prompts,
        sampling=sampling,
        adapter=site.names.adapter(body.model, body.lora),
        priority=body.priority or 0,
        engine=engine,
        deadline=exchange.deadline(),
        is_streamed=bool(body.stream),
        comes_in_parts=comes_in_parts,
    )


def check_streamed(body: GenerationBody) -> None:
    """Raises InvalidRequest for what the chunks of a stream do not show."""
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs", "are not part of a stream; leave stream out")


async def respond(site: Site, exchange: Exchange, call: Generation, shape: Shape) -> None:
    if call.is_streamed:
        await _stream(site, exchange, call, shape)
    else:
        await _answer(site, exchange, call, shape)


async def _answer(site: Site, exchange: Exchange, call: Generation, shape: Shape) -> None:
    outcome, usage = Outcome(), shape.usage
    async with aclosing(_outputs(site, call, outcome)) as parts:
        async for piece in parts:
            usage.note(piece)
            shape.add(piece)
    outcome.check()
    if outcome.is_empty:
        raise RequestFailed("the request ended without an answer")
    await exchange.answer(msgspec.json.encode(shape.answer(usage.usage())))


async def _stream(site: Site, exchange: Exchange, call: Generation, shape: Shape) -> None:
    outcome, usage = Outcome(), shape.usage
    try:
        async with aclosing(_outputs(site, call, outcome)) as parts:
            async for piece in parts:
                usage.note(piece)
                events = shape.events(piece, usage)
                if not exchange.has_begun:
                    await exchange.begin_events()
                await exchange.write(events)
        outcome.check()
        if not exchange.has_begun:
            raise RequestFailed("the request ended without an answer")
    except ReaderTooSlow:
        raise
    except Exception as error:
        if not exchange.has_begun:
            raise
        told = renamed(error, exchange.field_names)
        status, text = http_status(told)
        await exchange.end(raw_event(error_body(status, text, parameter_of(told))) + DONE)
    else:
        await exchange.end(shape.last_events(usage) + DONE)


async def _outputs(site: Site, call: Generation, outcome: Outcome) -> AsyncGenerator[RequestOutput, None]:
    """Yields the outputs of a request in pieces, each in a turn of the event loop that has time for it."""
    generated = call.engine.stream(
        call.prompts,
        call.sampling if call.is_streamed else collected(call.sampling, call.comes_in_parts),
        [call.adapter] * len(call.prompts),
        [call.priority] * len(call.prompts),
        request_id=call.head.id,
        deadline=call.deadline,
    )
    async with aclosing(generated) as news:
        async for outputs in news:
            for output in outputs:
                outcome.note(output)
                for piece in pieces(output):
                    await site.turns.take(cost(piece))
                    yield piece
