"""Request: one sample of one user's request, as the scheduler sees it. Holds tokens and counters, no tensor.

There is no prefill phase and no decode phase: `num_computed_tokens` catches up with `num_tokens`.
"""

from dataclasses import dataclass, field
from enum import Enum

from .bad_words import BadWords
from .logit_edits import NO_EDITS, LogitEdits
from .matcher import Matcher
from .sampling_params import SamplingParams

AdapterUse = tuple[str, float]  # (digest, request scale)


class Status(Enum):
    WAITING = "waiting"  # accepted: the request holds no memory
    RUNNING = "running"  # admitted: the request holds its KV blocks and its adapters' pages
    FINISHED = "finished"  # ended: the request holds no memory any more


class FinishReason(Enum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    DEADLINE = "deadline"
    UNBEGUN = "unbegun"  # waited too long to be begun


@dataclass(frozen=True, slots=True)
class History:
    """What was told of a request by an engine that has ended. Another engine goes on after it."""

    output_token_ids: list[int]
    num_told_prompt_logprobs: int
    num_cached_tokens: int
    num_preemptions: int
    scheduled_ts: float


@dataclass(slots=True, eq=False)
class Request:
    request_id: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    max_tokens: int  # resolved: at least 1, and prompt and output together fit the model's length
    seed: int  # 64 bits; drawn by the front end if the user gave none
    sample_index: int = 0  # index among the n samples of the prompt
    eos_token_ids: frozenset[int] = frozenset()  # all tokens that end the model's texts
    further_eos_token_ids: frozenset[int] = frozenset()  # those of them that are no tokenizer's EOS
    adapters: tuple[AdapterUse, ...] = ()  # ordered; an empty list means the base model
    activation: int = 0  # first position that the adapters change (aLoRA); tokens before it are base tokens
    priority: int = 0  # lower is served earlier
    tenant: str = ""  # owner of the fair share that the request's service comes from
    weights: tuple[float, float] = (1.0, 1.0)  # of the tenant among tenants, of the adapters among the tenant's
    cache_salt: bytes = b""  # requests of different salts share no cached prefix
    num_unsalted_tokens: int = 0  # of the prompt's beginning; blocks that lie in them are shared whatever the salt
    bad_sequences: tuple[tuple[int, ...], ...] = ()  # tokens of sampling.bad_words
    edits: LogitEdits = NO_EDITS  # of sampling.allowed_token_ids and sampling.logit_bias, which are left empty
    deadline: float | None = None  # seconds by the caller's clock, from when on nobody waits for an answer
    begin_by: float | None = None  # by the same clock: what is not admitted by then is dropped; None from then on
    leader: int | None = None  # id of the sample whose prompt blocks this one waits to share
    num_alone: int = 0  # tokens that the request has still to generate in steps of its own; see alone.py
    matcher: Matcher | None = None  # of structured output, after the tokens of the answer so far
    arrival: int = 0  # order of acceptance, set by the scheduler
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens that the prefix cache had at the first admission
    num_preemptions: int = 0
    was_admitted: bool = False  # its prompt was charged and looked up in the prefix cache: neither is counted again
    passed_over: float = 0.0  # priced tokens that other flows received while it was the head of its flow; see lane.py
    is_overdue: bool = False  # passed over up to the bound: first in line, and the last of its priority to be preempted
    scheduled_ts: float = 0.0  # time of the first admission in seconds; 0 before it
    num_told_prompt_logprobs: int = 0  # prompt positions with reported logprobs; recomputing must not repeat them
    token_ids: list[int] = field(default_factory=list)  # prompt and output
    block_keys: list[bytes] = field(default_factory=list)  # prefix keys of the full blocks of token_ids
    bad_words: BadWords = field(init=False)  # of bad_sequences
    stop_token_ids: frozenset[int] = field(init=False)  # tokens that end the request, EOS included unless it is ignored
    all_stop_token_ids: frozenset[int] = field(init=False)  # EOS included even if it is ignored

    def __post_init__(self) -> None:
        self.token_ids = self.token_ids or list(self.prompt_token_ids)
        self.bad_words = BadWords(self.bad_sequences)
        named = frozenset(self.sampling.stop_token_ids or ())
        self.all_stop_token_ids = named | self.eos_token_ids
        self.stop_token_ids = named if self.sampling.ignore_eos else self.all_stop_token_ids

    def resume(self, history: History) -> None:
        """Makes a new request one that goes on after what was told of it: it computes the told tokens again, as it
        would after a preemption, and then draws the next one."""
        self.token_ids = [*self.prompt_token_ids, *history.output_token_ids]
        self.was_admitted = True
        self.num_told_prompt_logprobs = history.num_told_prompt_logprobs
        self.num_cached_tokens = history.num_cached_tokens
        self.num_preemptions = history.num_preemptions
        self.scheduled_ts = history.scheduled_ts

    def stop_reason(self, token_id: int) -> int | None:
        """Returns the token that ended the request, or None if it is the usual one: the tokenizer's EOS."""
        is_usual = token_id in self.eos_token_ids - self.further_eos_token_ids and not self.sampling.ignore_eos
        return None if is_usual else token_id

    @property
    def is_length_certain(self) -> bool:
        """Whether nothing but max_tokens ends the answer."""
        sampling = self.sampling
        return not (self.stop_token_ids or sampling.stop or sampling.structured_outputs is not None)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def num_missing_tokens(self) -> int:
        """Number of known tokens whose KV is not computed; at least 1 while the request is unfinished."""
        return len(self.token_ids) - self.num_computed_tokens
