"""The values that users pass and receive: adapter requests, request outputs, facts about adapters and the engine.

The shapes and names are vLLM's where vLLM has them. Pure data: no torch, no wire.
"""

import time
from dataclasses import dataclass, field

from blora.adapters.report import AdapterReport
from blora.scheduler import CacheCounts, StepCosts


@dataclass(frozen=True, slots=True, eq=False)
class LoRARequest:
    """An adapter to use. Two are equal if their names are.

    The engine loads an unknown `lora_name` from `lora_path`, and a loaded one again if its files have changed. It
    refuses a loaded name with another path, unless `lora_int_id` is another one too. `load_inplace` always loads again.
    `lora_scale` multiplies the adapter's own alpha / r.
    """

    lora_name: str
    lora_int_id: int = 1  # another one than before means that the weights may be new; the name identifies the adapter
    lora_path: str = ""
    base_model_name: str | None = None  # ignored, accepted for code written for vLLM
    load_inplace: bool = False
    lora_scale: float = 1.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoRARequest) and self.lora_name == other.lora_name

    def __hash__(self) -> int:
        return hash(self.lora_name)


LoRAUse = LoRARequest | tuple[LoRARequest, ...] | None  # one adapter, the sum of several, the base model


@dataclass(frozen=True, slots=True)
class Logprob:
    logprob: float  # natural logarithm, of the raw logits
    rank: int  # 1 is the most likely token
    decoded_token: str | None = None


# One entry per position: token id -> its Logprob; the first prompt position has none.
PromptLogprobs = list[dict[int, Logprob] | None]
SampleLogprobs = list[dict[int, Logprob]]


@dataclass(slots=True)
class CompletionOutput:
    """One sample of a request. With RequestOutputKind.DELTA, text, token_ids and logprobs hold only the new part."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: SampleLogprobs | None = None
    finish_reason: str | None = None  # "stop", "length", "abort" or "error"
    stop_reason: int | str | None = None  # the stop string or token; None for the tokenizer's EOS
    lora_request: LoRAUse = None
    error: str | None = None  # the reason of finish_reason "error"

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request in seconds: `arrival_time` is time.time(), names that end in `_ts` are time.monotonic(); 0
    means not yet. Counts are sums over its samples.
    """

    arrival_time: float = 0.0  # when the call came
    queued_ts: float = 0.0  # when the engine received it
    scheduled_ts: float = 0.0  # when it first received blocks
    first_token_ts: float = 0.0  # when the front end received its first token
    last_token_ts: float = 0.0  # when the front end received its latest token
    num_generation_tokens: int = 0  # tokens generated so far
    num_preemptions: int = 0  # how often it gave its blocks back and began again

    @property
    def first_token_latency(self) -> float:
        """Seconds from queued to the first token; 0 before the first token."""
        return self.first_token_ts - self.queued_ts if self.first_token_ts else 0.0


@dataclass(slots=True)
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: PromptLogprobs | None = None
    lora_request: LoRAUse = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as the engine reads it."""

    token_ids: list[int]
    texts: list[str] | None  # of each token, as the vocabulary has it
    max_model_len: int  # tokens of prompt and output together


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One version of a name's weights. A request for "name@number" gets it, whichever version is active."""

    number: int  # 1, 2, ... in the order of loading
    digest: str
    path: str
    loaded_at: float  # time.time()
    active: bool  # True if the name alone means this version


@dataclass(frozen=True, slots=True)
class AdapterUsage:
    """Sums over the ended requests that named an adapter, or any of its versions."""

    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    num_generated_tokens: int = 0
    queue_seconds: float = 0.0  # from accepted to first scheduled
    last_used: float = 0.0  # time.time() when the last request ended; 0 means never

    def plus(self, num_prompt_tokens: int, num_cached_tokens: int, metrics: RequestMetrics) -> "AdapterUsage":
        """Returns the sums with one more request, which has just ended."""
        waited = metrics.scheduled_ts - metrics.queued_ts if metrics.scheduled_ts else 0.0
        return AdapterUsage(
            num_requests=self.num_requests + 1,
            num_prompt_tokens=self.num_prompt_tokens + num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens + num_cached_tokens,
            num_generated_tokens=self.num_generated_tokens + metrics.num_generation_tokens,
            queue_seconds=self.queue_seconds + max(waited, 0.0),
            last_used=time.time(),
        )


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """Facts about one version of a loaded adapter."""

    name: str
    digest: str  # sha256 over configuration, weights, added tokens and chat template
    path: str
    ranks: tuple[int, ...]  # the distinct ranks, ascending
    modules: tuple[str, ...]  # the distinct kinds of module, such as "q_proj"
    num_bytes: int  # bytes of its pages, in host memory and, when resident, in the arena
    num_pages: int
    pinned: bool = False
    resident: bool = False
    num_requests: int = 0  # unfinished requests that use it
    warnings: tuple[str, ...] = field(default=())
    version: int = 1  # number of this version
    versions: tuple[AdapterVersion, ...] = ()  # all versions that are kept, by number
    usage: AdapterUsage = AdapterUsage()  # since the name was loaded
    # Copies of this version into the arena, since it was loaded or the engine started. There is no figure for the cost
    # of computing with one adapter, because all rows of a step are computed together.
    num_copies: int = 0
    num_copied_bytes: int = 0  # abandoned copies included
    copy_seconds: float = 0.0  # seconds of steps, for which all rows waited
    invocation_tokens: tuple[int, ...] = ()  # tokens that a prompt must contain, for an activated LoRA
    in_host_memory: bool = True  # if False, the engine reads it again when a request asks for it
    owner: str = ""  # the tenant that has loaded the name; empty for the owner of the engine
    set_aside: str = ""  # why no engine is given it any more, and requests for it are refused; empty if they are not
    report: AdapterReport | None = None  # only from the call that loaded it


@dataclass(frozen=True, slots=True)
class AdapterState:
    """The place of an adapter in the engine, and its use."""

    is_resident: bool = False
    is_pinned: bool = False
    num_requests: int = 0  # unfinished requests that use it
    num_copies: int = 0  # copies into the arena
    num_copied_pages: int = 0
    copy_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The engine's present load, and its counts since it started."""

    num_free_pages: int
    num_running: int
    num_waiting: int
    counts: CacheCounts
    step_costs: StepCosts


@dataclass(frozen=True, slots=True)
class LoadSnapshot:
    """An engine's load, for routers."""

    is_serving: bool  # False while the engine is started again
    num_running: int
    num_waiting: int
    num_queued_tokens: int  # of prompts that wait for their first token
    num_refused: int  # requests refused because of a full queue or a long wait
    num_pages: int
    num_free_pages: int
    resident_adapters: tuple[str, ...]  # "name@version" of those in the arena, ordered
    num_requests: int = 0  # that have ended since the start
    num_generated_tokens: int = 0  # since the start
    num_prompt_tokens: int = 0  # of admitted requests, since this engine started; 0 without one
    num_cached_tokens: int = 0  # of these, found in the prefix cache
    num_preemptions: int = 0  # since this engine started; 0 without one
    num_engine_deaths: int = 0  # since the start
    num_crashes: int = 0  # of these, those that nothing outside had ended


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """The queue in front of the engine, with counts since LLM or AsyncLLM was started."""

    num_queued_tokens: int  # of prompts that wait for their first token
    num_refused: int  # requests refused because of a full queue or a long wait
    num_expired: int  # requests ended by their deadline


@dataclass(frozen=True, slots=True)
class AdapterEvent:
    """One change to a version of a name."""

    revision: int  # revision of the catalog: 1, 2, ... in the order of the events
    kind: str  # "loaded", "activated" or "removed"; "resident", "evicted", "pinned" or "unpinned"
    name: str
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class AdapterSnapshot:
    """All loaded adapters, as of the event with this revision. Later events may repeat facts that it contains."""

    revision: int
    adapters: tuple[AdapterInfo, ...]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about a running engine, its load and its counts. LLM, AsyncLLM and the server measure the same."""

    model: str
    dtype: str
    vocab_size: int  # width of the logits: token ids are below it
    max_model_len: int  # tokens
    block_size: int  # tokens
    num_pages: int
    page_bytes: int
    num_free_pages: int
    num_running: int
    num_waiting: int
    version: str
    # Counts since the engine started; see CacheCounts of the scheduler.
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_adapter_uses: int = 0
    num_adapter_hits: int = 0
    num_copied_pages: int = 0
    num_evicted_blocks: int = 0
    num_evicted_adapters: int = 0
    num_preemptions: int = 0
    copy_seconds: float = 0.0
    # Seconds of the parts of a step, as the scheduler predicts them now; see StepCosts of the scheduler.
    step_seconds: float = 0.0
    row_seconds: float = 0.0
    token_seconds: float = 0.0
    read_seconds: float = 0.0
    pair_seconds: float = 0.0
    adapter_page_seconds: float = 0.0
    adapted_token_seconds: float = 0.0
    scored_token_seconds: float = 0.0
    # Sums over all requests that have ended, for adapters and the base model, across restarts of the engine.
    num_requests: int = 0
    num_generated_tokens: int = 0  # those of unfinished requests included
    queue_seconds: float = 0.0
    # Counts of the host cache, since LLM or AsyncLLM was started; see ImageLedger.
    num_host_adapters: int = 0
    num_host_bytes: int = 0
    max_host_bytes: int | None = None
    num_host_uses: int = 0
    num_host_hits: int = 0
    num_host_reads: int = 0
    num_host_failures: int = 0
    # Engine processes that have ended, and what they were at; see Suspects. LLM has no engine process.
    num_engine_deaths: int = 0
    num_crashes: int = 0
    num_stalls: int = 0
    num_requests_set_aside: int = 0
    num_adapters_set_aside: int = 0
    # The queue, and its counts, since LLM or AsyncLLM was started; see QueueFacts.
    num_queued_tokens: int = 0
    num_refused: int = 0
    num_expired: int = 0
