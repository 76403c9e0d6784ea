"""OutputProcessor: turns the engine's updates into outputs for users. Owns the texts of all unfinished requests.

A user's request is n samples; each sample is one request of the engine, with its own id. A user's id is only a label.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from blora.scheduler import FinishReason, History, RequestOutputKind, RowUpdate, SamplingParams

from ..outputs import CompletionOutput, LoRAUse, PromptLogprobs, RequestMetrics, RequestOutput, SampleLogprobs
from ..text.detokenizer import Detokenizer
from ..text.tokenizer import Tokenizer
from .named_logprobs import name_logprobs
from .trace_context import TRACE

# Estimates in microseconds of what takes in and shows a row, its tokens and logprobs, without the door's part.
ROW_COST, TOKEN_COST, LOGPROB_COST = 50, 10, 2
FULL = 2000  # for one piece of work


@dataclass(slots=True)
class _Sample:
    """One sample: its output so far, and how much of that the user has seen."""

    index: int
    detokenizer: Detokenizer | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: SampleLogprobs = field(default_factory=list)  # of a stream: those that were not shown yet
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    num_preemptions: int = 0
    last_token_ts: float = 0.0  # as RequestMetrics has it, of this sample
    num_told_prompt_logprobs: int = 0
    num_shown_tokens: int = 0
    num_shown_characters: int = 0
    is_shown_finished: bool = False


@dataclass(slots=True, eq=False)
class UserRequest:
    """One request of a user: its samples, and the form in which the user wants them."""

    request_id: str  # the user's label
    prompt: str | None
    prompt_token_ids: list[int]
    sampling: SamplingParams
    lora_request: LoRAUse
    output_kind: RequestOutputKind
    sample_ids: list[int]  # the engine's ids, one per sample
    tokenizer: Tokenizer  # the model's, or that of one of its adapters
    adapters: tuple[tuple[str, str], ...] = ()  # name and digest of each
    tenant: str = ""
    trace: Mapping[str, str] = field(default_factory=TRACE.get)  # of the span that its call is part of
    samples: list[_Sample] = field(default_factory=list)
    num_expected: int = 0  # samples that are expected from the engine
    prompt_logprobs: PromptLogprobs | None = None  # of a stream: those that were not shown yet
    num_unread_logprobs: int = 0  # of a stream: those that were not shown yet
    has_news: bool = False  # True if anything came since the last output was taken
    num_cached_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(time.time()))

    @property
    def is_finished(self) -> bool:
        return all(sample.finish_reason is not None for sample in self.samples)

    @property
    def num_answer_tokens(self) -> int | None:
        """The length of an answer that came to its own end, in the mean of the samples; None for any other."""
        ends = {sample.finish_reason for sample in self.samples}
        if not ends <= {FinishReason.STOP, FinishReason.LENGTH}:
            return None
        return sum(len(sample.token_ids) for sample in self.samples) // len(self.samples)

    @property
    def has_begun(self) -> bool:
        """Whether a token has come."""
        return bool(self.metrics.first_token_ts)

    @property
    def is_too_late(self) -> bool:
        """Whether the deadline has ended it."""
        return any(sample.finish_reason is FinishReason.DEADLINE for sample in self.samples)

    @property
    def has_waited_too_long(self) -> bool:
        """Whether it was dropped because it was not begun in time."""
        return any(sample.finish_reason is FinishReason.UNBEGUN for sample in self.samples)


@dataclass(slots=True)
class Progress:
    """What came of a piece of work on a step's updates."""

    grown: dict[UserRequest, None] = field(default_factory=dict)  # the requests that grew
    to_finish: list[int] = field(default_factory=list)  # samples to finish in the engine: their text met a stop string
    cost: int = 0  # an estimate of the time that it took, and that its readers will take, in microseconds

    @property
    def is_full(self) -> bool:
        return self.cost >= FULL


class OutputProcessor:
    def __init__(
        self,
        on_first_token: Callable[[UserRequest], None],
        on_end: Callable[[UserRequest], None],
        now: Callable[[], float] = time.monotonic,
        on_tokens: Callable[[int, float | None], object] = lambda _num, _seconds: None,
    ) -> None:
        """on_end: called once for every added request, when all of its samples have finished; on_first_token: before
        that, if a token has come; on_tokens: with a number of new tokens of a sample, and the
        seconds since its tokens before, if there were any."""
        self._on_first_token, self._on_end, self._now, self._on_tokens = on_first_token, on_end, now, on_tokens
        self._samples: dict[int, tuple[UserRequest, _Sample]] = {}

    def add(self, request: UserRequest) -> None:
        request.metrics.queued_ts = self._now()
        sampling = request.sampling
        for index, sample_id in enumerate(request.sample_ids):
            detokenizer = (
                Detokenizer(request.tokenizer, request.prompt_token_ids, sampling) if sampling.detokenize else None
            )
            sample = _Sample(index, detokenizer)
            request.samples.append(sample)
            request.num_expected += 1
            self._samples[sample_id] = (request, sample)
        if sampling.prompt_logprobs is not None:
            request.prompt_logprobs = [None]  # nothing precedes the first token

    def remove(self, request: UserRequest) -> list[int]:
        """Removes a request; returns the engine's ids of its samples that are unfinished there."""
        unfinished = [sample_id for sample_id in request.sample_ids if sample_id in self._samples]
        for sample_id in unfinished:
            self._forget(sample_id)
        return unfinished

    def _forget(self, sample_id: int) -> None:
        request, _ = self._samples.pop(sample_id)
        request.num_expected -= 1
        if not request.num_expected:
            self._on_end(request)

    def is_known(self, request: UserRequest) -> bool:
        """Returns whether any sample of the request is still expected from the engine."""
        return request.num_expected > 0

    def digests(self) -> dict[int, list[str]]:
        """Returns the digests of the adapters of each expected sample."""
        return {sample_id: [digest for _, digest in user.adapters] for sample_id, (user, _) in self._samples.items()}

    def expects(self, sample_id: int) -> bool:
        """Returns whether a sample is still expected from the engine."""
        return sample_id in self._samples

    def history_of(self, sample_id: int) -> History | None:
        """Returns what the engine has told of an expected sample; None if that is nothing yet."""
        request, sample = self._samples[sample_id]
        if not sample.token_ids and not sample.num_told_prompt_logprobs:
            return None
        return History(
            output_token_ids=sample.token_ids,
            num_told_prompt_logprobs=sample.num_told_prompt_logprobs,
            num_cached_tokens=request.num_cached_tokens,
            num_preemptions=sample.num_preemptions,
            scheduled_ts=request.metrics.scheduled_ts,
        )

    @property
    def num_unfinished(self) -> int:
        """The number of unfinished samples."""
        return len(self._samples)

    def process(self, updates: Iterable[RowUpdate]) -> Iterator[Progress]:
        """Adds a step's updates to their requests. Yields what came of each piece of this work. Between two pieces
        requests may begin and end."""
        progress = Progress()
        for update in updates:
            if update.request_id not in self._samples:
                continue  # aborted, or ended by a stop string, while the step ran
            tokenizer, named = self._samples[update.request_id][0].tokenizer, SampleLogprobs()
            for num_named in name_logprobs((*update.prompt_logprobs, *update.logprobs), tokenizer, named):
                progress.cost += num_named * LOGPROB_COST
                if progress.is_full:
                    yield progress
                    progress = Progress()
            self._add_to_its_request(update, named, progress)
        yield progress

    def _add_to_its_request(self, update: RowUpdate, named: SampleLogprobs, progress: Progress) -> None:
        """named: the logprobs of the prompt, then those of the sample."""
        entry = self._samples.get(update.request_id)
        if entry is None:
            return  # ended while its logprobs were named
        request, sample = entry
        if request.output_kind is RequestOutputKind.DELTA:
            request.num_unread_logprobs += sum(map(len, named))
        is_first = bool(update.token_ids) and not request.metrics.first_token_ts
        does_stop = self._add(request, sample, update, named)
        if is_first:
            self._on_first_token(request)
        if does_stop and update.finish_reason is None:
            progress.to_finish.append(update.request_id)
        if sample.finish_reason is not None:
            self._forget(update.request_id)
        request.has_news = True
        progress.grown[request] = None
        progress.cost += ROW_COST + TOKEN_COST * len(update.token_ids)

    def users(self) -> list[UserRequest]:
        """Returns the unfinished requests."""
        return list({request: None for request, _ in self._samples.values()})

    def users_of(self, name: str, digests: Collection[str]) -> list[UserRequest]:
        """Returns the unfinished requests that named this adapter and got one of these digests."""
        return [user for user in self.users() if any(use[0] == name and use[1] in digests for use in user.adapters)]

    def take(self, request: UserRequest) -> RequestOutput | None:
        """Returns the output to show the user now, or None. A slow reader gets fewer, larger outputs, never a
        backlog."""
        if not request.has_news or (not request.is_finished and _is_held_back(request)):
            return None
        request.has_news = False
        return self._output(request)

    def drop_news(self, request: UserRequest) -> None:
        """Drops what waits for the reader of a stream, which has to be told that it is incomplete."""
        request.has_news, request.num_unread_logprobs = False, 0
        request.prompt_logprobs = None
        for sample in request.samples:
            sample.logprobs = []

    def fail(self, request: UserRequest, reason: FinishReason, error: str | None = None) -> list[int]:
        """Ends all unfinished samples of a request; returns their ids, which the engine has to finish."""
        request.has_news |= not request.is_finished
        for sample in request.samples:
            if sample.finish_reason is None:
                sample.finish_reason, sample.error = reason, error
                if sample.detokenizer is not None:
                    sample.detokenizer.finish()
        return self.remove(request)

    def _add(self, request: UserRequest, sample: _Sample, update: RowUpdate, named: SampleLogprobs) -> bool:
        """Adds an update to its sample. Returns True if a stop string ended the text; drops the tokens after it."""
        if sample.index == 0:  # the other samples find the blocks in the cache that the first has just computed
            request.num_cached_tokens = update.num_cached_tokens
        sample.num_told_prompt_logprobs += len(update.prompt_logprobs)
        if request.prompt_logprobs is not None:
            request.prompt_logprobs += named[: len(update.prompt_logprobs)]
        num_used = self._add_text(request, sample, update)
        self._measure(request.metrics, sample, update, num_used)
        sample.token_ids += update.token_ids[:num_used]
        sample.logprobs += named[len(update.prompt_logprobs) :][:num_used]
        for entry in update.logprobs[:num_used]:
            sample.cumulative_logprob += entry.logprobs[0]
        stop_string = None if sample.detokenizer is None else sample.detokenizer.stop_string
        sample.finish_reason, sample.stop_reason = update.finish_reason, update.stop_token_id
        sample.error = update.error
        if stop_string is not None:
            sample.finish_reason, sample.stop_reason = FinishReason.STOP, stop_string
        return stop_string is not None

    def _measure(self, metrics: RequestMetrics, sample: _Sample, update: RowUpdate, num_tokens: int) -> None:
        metrics.scheduled_ts = metrics.scheduled_ts or update.scheduled_ts
        num_preemptions = max(update.num_preemptions, sample.num_preemptions)  # an update of an error counts none
        metrics.num_preemptions += num_preemptions - sample.num_preemptions
        sample.num_preemptions = num_preemptions
        metrics.num_generation_tokens += num_tokens
        if update.token_ids:
            now = self._now()
            self._on_tokens(num_tokens, now - sample.last_token_ts if sample.last_token_ts else None)
            sample.last_token_ts = metrics.last_token_ts = now
            metrics.first_token_ts = metrics.first_token_ts or now

    def _add_text(self, request: UserRequest, sample: _Sample, update: RowUpdate) -> int:
        """Returns how many of the tokens belong to the text."""
        detokenizer = sample.detokenizer
        if detokenizer is None:
            return len(update.token_ids)
        # A stop token ends the text and is no part of it.
        is_stopped = update.finish_reason is FinishReason.STOP and not update.is_complete
        is_last_shown = not is_stopped or request.sampling.include_stop_str_in_output
        num_used = detokenizer.push(update.token_ids, is_last_shown)
        if update.finish_reason is not None:
            detokenizer.finish()
        return num_used

    def _output(self, request: UserRequest) -> RequestOutput:
        is_delta = request.output_kind is RequestOutputKind.DELTA
        samples = [self._completion(request, sample) for sample in request.samples if not is_delta or _has_news(sample)]
        prompt_logprobs = request.prompt_logprobs
        if is_delta and prompt_logprobs is not None:
            request.prompt_logprobs = []
        request.num_unread_logprobs = 0
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=samples,
            finished=request.is_finished,
            prompt_logprobs=prompt_logprobs,
            lora_request=request.lora_request,
            num_cached_tokens=request.num_cached_tokens,
            metrics=request.metrics,
        )

    def _completion(self, request: UserRequest, sample: _Sample) -> CompletionOutput:
        is_delta = request.output_kind is RequestOutputKind.DELTA
        text = "" if sample.detokenizer is None else sample.detokenizer.text
        first_token = sample.num_shown_tokens if is_delta else 0
        first_character = sample.num_shown_characters if is_delta else 0
        sample.num_shown_tokens, sample.num_shown_characters = len(sample.token_ids), len(text)
        sample.is_shown_finished = sample.finish_reason is not None
        logprobs = sample.logprobs if is_delta else sample.logprobs[:]
        sample.logprobs = [] if is_delta else sample.logprobs
        has_logprobs = request.sampling.logprobs is not None
        return CompletionOutput(
            index=sample.index,
            text=text[first_character:],
            token_ids=sample.token_ids[first_token:],
            cumulative_logprob=sample.cumulative_logprob if has_logprobs else None,
            logprobs=logprobs if has_logprobs else None,
            finish_reason=None if sample.finish_reason is None else sample.finish_reason.value,
            stop_reason=sample.stop_reason,
            lora_request=request.lora_request,
            error=sample.error,
        )


def _is_held_back(request: UserRequest) -> bool:
    """Returns whether the news of an unfinished request waits for more."""
    if request.output_kind is RequestOutputKind.FINAL_ONLY:
        return True
    interval = request.sampling.stream_interval or 1
    return interval > 1 and not any(_is_due(sample, interval) for sample in request.samples)


def _is_due(sample: _Sample, interval: int) -> bool:
    """Returns whether a sample has its first tokens or its end to show, or an interval's number of tokens."""
    if not sample.num_shown_tokens or sample.finish_reason is not None:
        return _has_news(sample)
    return len(sample.token_ids) - sample.num_shown_tokens >= interval


def _has_news(sample: _Sample) -> bool:
    """Returns whether a delta of this sample would be news: new tokens, or an end that was not shown yet."""
    if sample.num_shown_tokens < len(sample.token_ids):
        return True
    return sample.finish_reason is not None and not sample.is_shown_finished
