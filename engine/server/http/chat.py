"""/v1/chat/completions: a conversation, and the shape of its answer."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from blora.scheduler import RequestOutputKind, SamplingParams

from ...errors import InvalidRequest
from ...outputs import CompletionOutput, RequestOutput
from ...text.wire_chat import WireChat
from .answers import ChatAnswer, ChatChoice, ChatChunk, Delta, DeltaChoice, Usage, UsageCount
from .chat_view import TextView, View
from .division import Division, divide
from .exchange import Exchange, unless_gone
from .field_names import DEMANDED_CALL, client_names
from .logprobs import chat_logprobs, prompt_logprobs
from .pieces_of_json import items, joined
from .requests import ChatBody, ConversationBody, check_served, is_given, read
from .responding import Head, check_streamed, generation, respond
from .sampling import sampling_params
from .site import Site
from .sse import event
from .usage_options import usage_options

CHAT_FIELDS = (
    *("messages", "tools", "documents", "reasoning_effort", "chat_template_kwargs"),
    *("add_generation_prompt", "continue_final_message"),
)
NOTHING = Delta()
MOST_CHAT_HERE = 4096  # bytes of a conversation that is read here; a longer one stays as it came


async def chat(site: Site, exchange: Exchange) -> None:
    engine, body = site.engine(exchange), read(ChatBody, await exchange.body(site.most_body_bytes))
    exchange.field_names = client_names(body)
    check_served(body)
    check_streamed(body)
    sampling = _sampling(body, engine.get_default_sampling_params(), engine.most_listed())
    division = divide(site, body, engine.get_tokenizer(site.names.adapter(body.model, body.lora)), sampling)
    if division is not None and division.form.choice.schema is not None:
        exchange.field_names = {**client_names(body), **DEMANDED_CALL}
    prompt = conversation(body) | ({} if body.cache_salt is None else {"cache_salt": body.cache_salt})
    call = generation(site, exchange, engine, body, "chatcmpl", [prompt], sampling, comes_in_parts=division is not None)
    await unless_gone(exchange, respond(site, exchange, call, ChatShape(body, call.head, division)))


def _sampling(body: ChatBody, defaults: SamplingParams, most_listed: Mapping[str, int]) -> SamplingParams:
    defaults.output_kind = RequestOutputKind.DELTA
    if defaults.max_tokens == SamplingParams().max_tokens:  # the model's files say nothing: as much as fits
        defaults.max_tokens = None
    return sampling_params(body, defaults, most_listed, logprobs=_num_logprobs(body), **_max_tokens(body))


def _max_tokens(body: ChatBody) -> dict[str, int | None]:
    return {} if body.max_completion_tokens is None else {"max_tokens": body.max_completion_tokens}


def _num_logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("top_logprobs", "is given without logprobs; set logprobs to true")
    return None


def conversation(body: ConversationBody) -> dict[str, Any]:
    """Returns a prompt. A long one is read where it holds up nobody. Raises InvalidRequest."""
    if not is_given(body.messages):
        raise InvalidRequest("messages", "are missing")
    given = {name: getattr(body, name) for name in CHAT_FIELDS if is_given(getattr(body, name))}
    chat = WireChat(msgspec.json.encode(given), has_template=False, form="json")
    return chat.arguments() if len(chat.data) <= MOST_CHAT_HERE else {"wire_chat": chat}


class ChatShape:
    """The choices of one conversation."""

    def __init__(self, body: ChatBody, head: Head, division: Division | None) -> None:
        """division: None where the text is the content."""
        self.usage = UsageCount()
        self._head = head
        self._division = division
        self._num_top = body.top_logprobs or 0
        self._shows_tokens = bool(body.return_token_ids)
        self._usage = usage_options(body)
        self._prompt_positions: list[bytes] = []
        self._prompt_token_ids: list[int] | None = None
        self._choices: dict[int, _Choice] = {}
        self._views: dict[int, View] = {}  # of the choices of a stream

    # In one answer.

    def add(self, piece: RequestOutput) -> None:
        self._prompt_token_ids = piece.prompt_token_ids
        if piece.prompt_logprobs:
            self._prompt_positions.append(items(prompt_logprobs(piece.prompt_logprobs)))
        for sample in piece.outputs:
            if sample.index not in self._choices:
                self._choices[sample.index] = _Choice(self._view(piece))
            self._choices[sample.index].add(sample, self._num_top)

    def _view(self, piece: RequestOutput) -> View:
        return TextView() if self._division is None else self._division.view(piece.prompt_token_ids)

    def answer(self, usage: Usage) -> ChatAnswer:
        return ChatAnswer(
            id=self._head.id,
            object="chat.completion",
            created=self._head.created,
            model=self._head.model,
            choices=[choice.shown(self._shows_tokens) for _, choice in sorted(self._choices.items())],
            usage=usage,
            prompt_logprobs=joined(self._prompt_positions) if self._prompt_positions else None,
            prompt_token_ids=self._prompt_token_ids if self._shows_tokens else None,
        )

    # In a stream.

    def events(self, piece: RequestOutput, usage: UsageCount) -> bytes:
        counts = self._usage.of_chunk(usage)
        choices = (self._delta(piece, sample) for sample in piece.outputs)
        chunks = (self._chunk([choice], counts, self._prompt_once(piece)) for choice in choices if choice is not None)
        return b"".join(map(event, chunks))

    def last_events(self, usage: UsageCount) -> bytes:
        return event(self._chunk([], usage.usage())) if self._usage.at_end else b""

    def _prompt_once(self, piece: RequestOutput) -> list[int] | None:
        """The first chunk tells the prompt."""
        if not self._shows_tokens or self._prompt_token_ids is not None:
            return None
        self._prompt_token_ids = piece.prompt_token_ids
        return self._prompt_token_ids

    def _chunk(
        self, choices: list[DeltaChoice], usage: Usage | None, prompt_token_ids: list[int] | None = None
    ) -> ChatChunk:
        head = self._head
        return ChatChunk(
            id=head.id,
            object="chat.completion.chunk",
            created=head.created,
            model=head.model,
            choices=choices,
            usage=usage,
            prompt_token_ids=prompt_token_ids,
        )

    def _delta(self, piece: RequestOutput, sample: CompletionOutput) -> DeltaChoice | None:
        """Returns None for a part that shows nothing yet."""
        is_first = sample.index not in self._views
        if is_first:
            self._views[sample.index] = self._view(piece)
        view = self._views[sample.index]
        delta = view.delta(sample)
        if is_first:
            delta.role, delta.content = "assistant", delta.content or ""
        elif delta == NOTHING and not (sample.finished() or sample.logprobs or self._shows_tokens):
            return None
        return DeltaChoice(
            index=sample.index,
            delta=delta,
            logprobs=chat_logprobs(sample, self._num_top),
            finish_reason=view.finish_reason(sample.finish_reason),
            stop_reason=sample.stop_reason,
            token_ids=sample.token_ids if self._shows_tokens else None,
        )


class _Choice:
    """One choice, whose parts are kept while they come. There may be megabytes of logprobs, which are encoded once."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._token_ids: list[int] = []
        self._logprobs: list[bytes] = []
        self._last: CompletionOutput | None = None

    def add(self, part: CompletionOutput, num_top: int) -> None:
        self._view.add(part)
        self._token_ids += part.token_ids
        logprobs = chat_logprobs(part, num_top)
        if logprobs is not None:
            self._logprobs.append(items(logprobs.content))
        self._last = part

    def shown(self, shows_tokens: bool) -> ChatChoice:
        last = self._last
        assert last is not None  # a choice is made for its first part
        return ChatChoice(
            index=last.index,
            message=self._view.message(),
            logprobs=Raw(b'{"content":%b}' % bytes(joined(self._logprobs))) if self._logprobs else None,
            finish_reason=self._view.finish_reason(last.finish_reason),
            stop_reason=last.stop_reason,
            token_ids=self._token_ids if shows_tokens else None,
        )
