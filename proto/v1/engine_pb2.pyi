# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("model", "dtype", "vocab_size", "max_model_len", "block_size", "num_pages", "page_bytes", "num_free_pages", "num_running", "num_waiting", "version", "num_prompt_tokens", "num_cached_tokens", "num_adapter_uses", "num_adapter_hits", "num_copied_pages", "num_evicted_blocks", "num_evicted_adapters", "num_preemptions", "copy_seconds", "step_seconds", "row_seconds", "token_seconds", "read_seconds", "pair_seconds", "adapter_page_seconds", "adapted_token_seconds", "scored_token_seconds", "num_requests", "num_generated_tokens", "queue_seconds", "num_host_bytes", "max_host_bytes", "num_host_uses", "num_host_hits", "num_host_reads", "num_host_failures", "num_host_adapters", "num_engine_deaths", "num_crashes", "num_stalls", "num_requests_set_aside", "num_adapters_set_aside", "num_queued_tokens", "num_refused", "num_expired")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_PAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ADAPTER_USES_FIELD_NUMBER: _ClassVar[int]
    NUM_ADAPTER_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_COPIED_PAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_EVICTED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_EVICTED_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    COPY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROW_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    READ_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PAIR_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_PAGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ADAPTED_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCORED_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NUM_HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_HOST_USES_FIELD_NUMBER: _ClassVar[int]
    NUM_HOST_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_HOST_READS_FIELD_NUMBER: _ClassVar[int]
    NUM_HOST_FAILURES_FIELD_NUMBER: _ClassVar[int]
    NUM_HOST_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NUM_ENGINE_DEATHS_FIELD_NUMBER: _ClassVar[int]
    NUM_CRASHES_FIELD_NUMBER: _ClassVar[int]
    NUM_STALLS_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_SET_ASIDE_FIELD_NUMBER: _ClassVar[int]
    NUM_ADAPTERS_SET_ASIDE_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPIRED_FIELD_NUMBER: _ClassVar[int]
    model: str
    dtype: str
    vocab_size: int
    max_model_len: int
    block_size: int
    num_pages: int
    page_bytes: int
    num_free_pages: int
    num_running: int
    num_waiting: int
    version: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_adapter_uses: int
    num_adapter_hits: int
    num_copied_pages: int
    num_evicted_blocks: int
    num_evicted_adapters: int
    num_preemptions: int
    copy_seconds: float
    step_seconds: float
    row_seconds: float
    token_seconds: float
    read_seconds: float
    pair_seconds: float
    adapter_page_seconds: float
    adapted_token_seconds: float
    scored_token_seconds: float
    num_requests: int
    num_generated_tokens: int
    queue_seconds: float
    num_host_bytes: int
    max_host_bytes: int
    num_host_uses: int
    num_host_hits: int
    num_host_reads: int
    num_host_failures: int
    num_host_adapters: int
    num_engine_deaths: int
    num_crashes: int
    num_stalls: int
    num_requests_set_aside: int
    num_adapters_set_aside: int
    num_queued_tokens: int
    num_refused: int
    num_expired: int
    def __init__(self, model: _Optional[str] = ..., dtype: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., block_size: _Optional[int] = ..., num_pages: _Optional[int] = ..., page_bytes: _Optional[int] = ..., num_free_pages: _Optional[int] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., version: _Optional[str] = ..., num_prompt_tokens: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ..., num_adapter_uses: _Optional[int] = ..., num_adapter_hits: _Optional[int] = ..., num_copied_pages: _Optional[int] = ..., num_evicted_blocks: _Optional[int] = ..., num_evicted_adapters: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., copy_seconds: _Optional[float] = ..., step_seconds: _Optional[float] = ..., row_seconds: _Optional[float] = ..., token_seconds: _Optional[float] = ..., read_seconds: _Optional[float] = ..., pair_seconds: _Optional[float] = ..., adapter_page_seconds: _Optional[float] = ..., adapted_token_seconds: _Optional[float] = ..., scored_token_seconds: _Optional[float] = ..., num_requests: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., num_host_bytes: _Optional[int] = ..., max_host_bytes: _Optional[int] = ..., num_host_uses: _Optional[int] = ..., num_host_hits: _Optional[int] = ..., num_host_reads: _Optional[int] = ..., num_host_failures: _Optional[int] = ..., num_host_adapters: _Optional[int] = ..., num_engine_deaths: _Optional[int] = ..., num_crashes: _Optional[int] = ..., num_stalls: _Optional[int] = ..., num_requests_set_aside: _Optional[int] = ..., num_adapters_set_aside: _Optional[int] = ..., num_queued_tokens: _Optional[int] = ..., num_refused: _Optional[int] = ..., num_expired: _Optional[int] = ...) -> None: ...

class WatchLoadRequest(_message.Message):
    __slots__ = ("most_per_second",)
    MOST_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    most_per_second: float
    def __init__(self, most_per_second: _Optional[float] = ...) -> None: ...

class WatchLoadResponse(_message.Message):
    __slots__ = ("is_serving", "num_running", "num_waiting", "num_queued_tokens", "num_refused", "num_pages", "num_free_pages", "resident_adapters", "num_requests", "num_generated_tokens", "num_prompt_tokens", "num_cached_tokens", "num_preemptions", "num_engine_deaths", "num_crashes")
    IS_SERVING_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_PAGES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_ENGINE_DEATHS_FIELD_NUMBER: _ClassVar[int]
    NUM_CRASHES_FIELD_NUMBER: _ClassVar[int]
    is_serving: bool
    num_running: int
    num_waiting: int
    num_queued_tokens: int
    num_refused: int
    num_pages: int
    num_free_pages: int
    resident_adapters: _containers.RepeatedScalarFieldContainer[str]
    num_requests: int
    num_generated_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    num_engine_deaths: int
    num_crashes: int
    def __init__(self, is_serving: _Optional[bool] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_queued_tokens: _Optional[int] = ..., num_refused: _Optional[int] = ..., num_pages: _Optional[int] = ..., num_free_pages: _Optional[int] = ..., resident_adapters: _Optional[_Iterable[str]] = ..., num_requests: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ..., num_prompt_tokens: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., num_engine_deaths: _Optional[int] = ..., num_crashes: _Optional[int] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_ids",)
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
