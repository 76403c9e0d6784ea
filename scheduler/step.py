"""Step: one scheduling decision and its results. Plain ints, made by the scheduler and read by the runner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .bad_words import NO_BAD_WORDS, BadWords
from .logit_edits import NO_EDITS, LogitEdits
from .matcher import Matcher
from .request import AdapterUse, FinishReason
from .residency import PageCopy
from .sampling_params import SamplingParams
from .step_time import StepWork


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """The next tokens of one request. Sequences are views of live state, valid until the step is committed."""

    request_id: int
    start: int  # tokens computed before this step
    num_new_tokens: int
    token_ids: Sequence[int]  # all known tokens; this step computes [start, start + num_new_tokens)
    num_prompt_tokens: int
    block_table: Sequence[int]  # [at least ceil((start + num_new_tokens) / block_size)]
    adapters: tuple[AdapterUse, ...]
    activation: int  # first position that the adapters change
    sampling: SamplingParams
    seed: int
    sample_index: int
    stop_token_ids: frozenset[int]  # EOS included; none of them can be drawn before sampling.min_tokens
    bad_words: BadWords = NO_BAD_WORDS
    edits: LogitEdits = NO_EDITS
    matcher: Matcher | None = None

    @property
    def end(self) -> int:
        return self.start + self.num_new_tokens

    @property
    def new_token_ids(self) -> Sequence[int]:
        """The tokens that this step computes: [num_new_tokens]."""
        return self.token_ids[self.start : self.end]

    @property
    def scored_token_ids(self) -> Sequence[int]:
        """The prompt tokens at the positions start + 1 to end, if their logprobs are requested; else nothing."""
        return self.token_ids[self.start + 1 : self.start + 1 + self.num_scored_tokens]

    @property
    def num_scored_tokens(self) -> int:
        if self.sampling.prompt_logprobs is None:
            return 0
        return max(min(self.num_new_tokens, self.num_prompt_tokens - self.start - 1), 0)

    @property
    def num_base_tokens(self) -> int:
        """Number of this step's first tokens that the adapters do not change."""
        return min(max(self.activation - self.start, 0), self.num_new_tokens) if self.adapters else self.num_new_tokens

    @property
    def work(self) -> StepWork:
        num_adapted = (self.num_new_tokens - self.num_base_tokens) * len(self.adapters)
        return StepWork.of_row(self.start, self.num_new_tokens, num_adapted, self.num_scored_tokens)

    @property
    def ending_token_ids(self) -> frozenset[int]:
        """The tokens that end the answer."""
        return frozenset(self.sampling.stop_token_ids or ()) if self.sampling.ignore_eos else self.stop_token_ids

    @property
    def is_sampled(self) -> bool:
        """Whether this step computes the last known token, whose logits give the next one."""
        return self.end == len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class Step:
    copies: Sequence[PageCopy]  # adapter pages to copy before anything is computed
    rows: Sequence[ScheduledRow]
    adapter_pages: Mapping[str, Sequence[int]]  # digest -> its pages, for every adapter the rows use
    work: StepWork = StepWork()  # of the rows
    is_full: bool = False  # whether there was no time, or there were no tokens, for more prompts

    @property
    def num_tokens(self) -> int:
        return sum(row.num_new_tokens for row in self.rows)

    @property
    def is_sampled(self) -> bool:
        """Whether the step gives a token of any row."""
        return any(row.is_sampled for row in self.rows)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The logprobs of one position: first that of the token that stands there, then those of the best alternatives."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]  # 1 is the most likely token


@dataclass(frozen=True, slots=True)
class RowResult:
    """The result of a step for one row: a token if one was sampled, or what ends the request without one."""

    token_id: int | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # one for each of the row's scored_token_ids
    error: str | None = None
    is_complete: bool = False  # the text matches what it has to match, and no token can follow


@dataclass(frozen=True, slots=True)
class RowUpdate:
    """The news about one request after one step, for the front end."""

    request_id: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended the request; None for the tokenizer's EOS
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    scheduled_ts: float = 0.0  # time of the first admission, in seconds by the caller's clock; 0 before it
    error: str | None = None
    is_complete: bool = False  # no token ended the request, but its text, which matches what it has to match

    @property
    def is_news(self) -> bool:
        """Whether there is anything to report; a chunk of a prompt brings nothing yet."""
        return bool(self.token_ids or self.prompt_logprobs) or self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """Counts since the start that show how well the arena is used."""

    num_prompt_tokens: int  # tokens of admitted requests that were looked up in the prefix cache
    num_cached_tokens: int  # of these, tokens found
    num_adapter_uses: int  # uses of adapters by admitted requests
    num_adapter_hits: int  # of these, uses that found the adapter resident or being copied; the others had it copied
    num_copied_pages: int
    num_evicted_blocks: int
    num_evicted_adapters: int
    num_preemptions: int
    copy_seconds: float  # time that steps spent on copying adapters


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one step."""

    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 128
    is_timed: bool = False  # whether prompts also leave decoding rows their pace; see pace.py
    target_itl: float | None = None  # seconds from one token of a request to the next; None follows from the rows
