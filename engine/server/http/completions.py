"""/v1/completions: prompts of text or tokens, and the shape of their answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Raw

from blora.scheduler import RequestOutputKind, SamplingParams

from ...errors import InvalidRequest
from ...front_end.adapter_choice import Adapter
from ...outputs import CompletionOutput, RequestOutput
from ...text.user_tokenizer import UserTokenizer
from ..callers_engine import CallersEngine
from .answers import Completion, CompletionChoice, CompletionLogprobs, Usage, UsageCount
from .exchange import Exchange, unless_gone
from .field_names import client_names
from .logprobs import CompletionPositions, most_likely, prompt_logprobs
from .pieces_of_json import items, joined
from .prompts import Given, read_prompts
from .requests import CompletionBody, check_served, read
from .responding import Head, check_streamed, generation, respond
from .sampling import sampling_params
from .site import Site
from .sse import event
from .usage_options import usage_options


async def completions(site: Site, exchange: Exchange) -> None:
    engine, body = site.engine(exchange), read(CompletionBody, await exchange.body(site.most_body_bytes))
    exchange.field_names = client_names(body)
    check_served(body)
    check_streamed(body)
    if body.add_special_tokens is False:
        raise InvalidRequest("add_special_tokens", "is always true for a text; send the tokens of /tokenize instead")
    if body.echo and body.truncate_prompt_tokens is not None:
        raise InvalidRequest("echo", "is not served beside truncate_prompt_tokens; send the tokens to be echoed")
    sampling = _sampling(body, engine.get_default_sampling_params(), engine.most_listed())
    prompts = read_prompts(body.prompt)
    salt = {} if body.cache_salt is None else {"cache_salt": body.cache_salt}
    call = generation(site, exchange, engine, body, "cmpl", [_form(prompt) | salt for prompt in prompts], sampling)
    echo = await _echo(engine, prompts, call.adapter) if body.echo else None
    await unless_gone(exchange, respond(site, exchange, call, CompletionShape(body, call.head, sampling.n, echo)))


def _sampling(body: CompletionBody, defaults: SamplingParams, most_listed: Mapping[str, int]) -> SamplingParams:
    defaults.output_kind = RequestOutputKind.DELTA
    own: dict[str, int | None] = {"logprobs": body.logprobs}
    if body.echo and body.logprobs is not None and (body.prompt_logprobs or 0) >= 0:  # a number below is refused
        own["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
    if body.echo and body.max_tokens == 0:
        own["max_tokens"] = 1  # which is not shown
    return sampling_params(body, defaults, most_listed, **own)


async def _echo(engine: CallersEngine, prompts: Sequence[Given], adapter: Adapter) -> "Echo":
    texts = [
        prompt if isinstance(prompt, str) else await engine.detokenize(prompt, lora_request=adapter)
        for prompt in prompts
    ]
    return Echo(texts, engine.get_tokenizer(adapter))


class Echo:
    """The texts of prompts, with which the choices begin."""

    def __init__(self, texts: Sequence[str], tokenizer: UserTokenizer) -> None:
        self.texts, self._tokenizer = texts, tokenizer

    def spell(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id]))


def _form(prompt: Given) -> dict[str, Any]:
    return {"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": prompt}


@dataclass(frozen=True, slots=True)
class Part:
    """What is new of one choice."""

    number: int  # of the choice
    text: str
    token_ids: list[int]
    logprobs: CompletionLogprobs | None
    sample: CompletionOutput | None = None  # None for a part of the prompt


class CompletionShape:
    """The choices of all prompts of a request: those of the first prompt come first."""

    def __init__(self, body: CompletionBody, head: Head, num_samples: int, echo: Echo | None) -> None:
        """echo: None where answers do not begin with their prompts."""
        self._head, self._num_samples, self._echo = head, num_samples, echo
        self._num_top = body.logprobs
        self._shows_tokens = bool(body.return_token_ids)
        self._says = not (body.echo and body.max_tokens == 0)
        self.usage = UsageCount(counts_generated=self._says)
        self._num_prompt_top = body.prompt_logprobs  # in vLLM's form; None where that is not shown
        self._usage = usage_options(body)
        self._prompts: dict[int, _Prompt] = {}
        self._positions: dict[int, CompletionPositions] = {}
        self._choices: dict[int, _Choice] = {}
        self._begun: set[int] = set()  # choices of a stream that have a chunk

    def _parts(self, piece: RequestOutput) -> Iterator[Part]:
        prompt = int(piece.request_id)
        if self._echo is not None:
            yield from self._prompt_parts(piece, prompt, self._echo)
        for sample in piece.outputs:
            number = prompt * self._num_samples + sample.index
            if self._says:
                logprobs = self._logprobs(number, sample.token_ids, sample.logprobs)
                yield Part(number, sample.text, sample.token_ids, logprobs, sample)
            else:
                yield Part(number, "", [], None, sample)

    def _prompt_parts(self, piece: RequestOutput, prompt: int, echo: Echo) -> Iterator[Part]:
        """A part of the prompt for each of its choices: the text comes first, the logprobs in their pieces."""
        is_first = prompt not in self._prompts
        first, last = self._prompts.setdefault(prompt, _Prompt()).take(piece)
        token_ids = piece.prompt_token_ids[first:last]
        text = echo.texts[prompt] if is_first else ""
        for number in range(prompt * self._num_samples, (prompt + 1) * self._num_samples):
            logprobs = self._logprobs(number, token_ids, piece.prompt_logprobs or None)
            if is_first or logprobs is not None:
                yield Part(number, text, [], logprobs)

    def _logprobs(self, number: int, token_ids: Sequence[int], positions: Any) -> CompletionLogprobs | None:
        if self._num_top is None or positions is None:
            return None
        if number not in self._positions:
            spell = str if self._echo is None else self._echo.spell
            self._positions[number] = CompletionPositions(self._num_top, spell)
        return self._positions[number].of(token_ids, positions)

    # In one answer.

    def add(self, piece: RequestOutput) -> None:
        for part in self._parts(piece):
            self._choices.setdefault(part.number, _Choice()).add(part)
        if self._echo is None:
            self._prompts.setdefault(int(piece.request_id), _Prompt()).take(piece)
        if self._num_prompt_top is not None and piece.prompt_logprobs:
            self._prompts[int(piece.request_id)].keep(piece, self._num_prompt_top)

    def answer(self, usage: Usage) -> Completion:
        return self._completion([self._shown(number) for number in sorted(self._choices)], usage)

    def _shown(self, number: int) -> CompletionChoice:
        choice, prompt = self._choices[number], self._prompts[number // self._num_samples]
        assert choice.last is not None  # an answer is given when all choices have ended
        return CompletionChoice(
            index=number,
            text="".join(choice.texts),
            logprobs=choice.logprobs() if self._num_top is not None else None,
            finish_reason=self._finish_reason(choice.last),
            stop_reason=choice.last.stop_reason if self._says else None,
            token_ids=choice.token_ids if self._shows_tokens else None,
            prompt_token_ids=prompt.token_ids if self._shows_tokens else None,
            prompt_logprobs=None if self._num_prompt_top is None else joined(prompt.logprobs),
        )

    # In a stream.

    def events(self, piece: RequestOutput, usage: UsageCount) -> bytes:
        counts = self._usage.of_chunk(usage)
        choices = (self._chunk(part, piece) for part in self._parts(piece))
        return b"".join(event(self._completion([choice], counts)) for choice in choices)

    def _chunk(self, part: Part, piece: RequestOutput) -> CompletionChoice:
        """The first chunk of a choice tells its prompt."""
        sample, tells_prompt = part.sample, self._shows_tokens and part.number not in self._begun
        self._begun.add(part.number)
        return CompletionChoice(
            index=part.number,
            text=part.text,
            logprobs=part.logprobs,
            finish_reason=None if sample is None else self._finish_reason(sample),
            stop_reason=sample.stop_reason if sample is not None and self._says else None,
            token_ids=part.token_ids if self._shows_tokens else None,
            prompt_token_ids=piece.prompt_token_ids if tells_prompt else None,
        )

    def _finish_reason(self, sample: CompletionOutput) -> str | None:
        """The token that is not shown says nothing about the end, unless the request failed."""
        is_told = self._says or sample.finish_reason in (None, "error")
        return sample.finish_reason if is_told else "length"

    def last_events(self, usage: UsageCount) -> bytes:
        return event(self._completion([], usage.usage())) if self._usage.at_end else b""

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None) -> Completion:
        head = self._head
        return Completion(
            id=head.id,
            object="text_completion",
            created=head.created,
            model=head.model,
            choices=choices,
            usage=usage,
        )


class _Prompt:
    """How much of a prompt has been shown."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[bytes] = []  # in vLLM's form
        self._num_positions = 0

    def take(self, piece: RequestOutput) -> tuple[int, int]:
        """Returns the positions whose logprobs come with the next piece."""
        self.token_ids = piece.prompt_token_ids
        first = self._num_positions
        self._num_positions += len(piece.prompt_logprobs or ())
        return first, self._num_positions

    def keep(self, piece: RequestOutput, num_top: int) -> None:
        """Keeps the logprobs of a piece that has been taken."""
        positions = piece.prompt_logprobs or []
        last = self._num_positions
        token_ids = piece.prompt_token_ids[last - len(positions) : last]
        self.logprobs.append(items(prompt_logprobs(most_likely(token_ids, positions, num_top))))


class _Choice:
    """One choice, whose parts are kept while they come. There may be megabytes of logprobs, which are encoded once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.last: CompletionOutput | None = None
        self._lists: dict[str, list[bytes]] = {name: [] for name in CompletionLogprobs.__struct_fields__}

    def add(self, part: Part) -> None:
        self.texts.append(part.text)
        self.token_ids += part.token_ids
        self.last = part.sample or self.last
        for name, parts in self._lists.items():
            if part.logprobs is not None:
                parts.append(items(getattr(part.logprobs, name)))

    def logprobs(self) -> Raw:
        lists = (b'"%b":%b' % (name.encode(), bytes(joined(parts))) for name, parts in self._lists.items())
        return Raw(b"{%b}" % b",".join(lists))
