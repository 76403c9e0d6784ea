"""Results: what a client returns, as plain frozen data with the names of the messages' fields.

The comments of the .proto files explain the fields. Owns the one way from messages to data; knows no call.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import FieldDescriptor

from .rich_errors import ErrorDetails
from .v1 import adapters_pb2, generation_pb2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """Facts about a request's prompt."""

    request_id: str  # the server's, for Client.abort
    num_prompt_tokens: int
    num_cached_tokens: int  # found in the prefix cache


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that a request has taken."""

    queued_seconds: float  # until it was first scheduled
    prefill_seconds: float  # from then to its first token
    first_token_seconds: float  # from its acceptance to its first token: the sum of the two
    decode_seconds: float  # from its first token to its last one


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    logprob: float | None  # None for the first token of a prompt
    rank: int | None  # 1 is the likeliest token
    text: str | None


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The candidates for one position."""

    token: TokenLogprob  # the one that stands there
    alternatives: tuple[TokenLogprob, ...]  # likeliest first


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample; in a stream, the news of one: text, token_ids and logprobs hold what came since the last."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]  # one for each of token_ids, if asked for
    cumulative_logprob: float | None
    finish_reason: str | None  # "stop", "length", "abort" or "error"; None while the sample goes on
    stop_reason: str | int | None  # the stop string or token that ended it
    error: str  # with the finish_reason "error"


@dataclass(frozen=True, slots=True)
class Generation:
    """The whole answer to a request."""

    prompt: PromptInfo
    samples: tuple[Sample, ...]  # by index
    prompt_logprobs: tuple[PositionLogprobs, ...]
    timings: Timings | None

    @property
    def text(self) -> str:
        """The text of the first sample."""
        return self.samples[0].text


@dataclass(frozen=True, slots=True)
class Refusal:
    """One request of a batch that failed; the others go on."""

    code: str  # the name of the status code, such as "INVALID_ARGUMENT"
    message: str
    details: ErrorDetails


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The end of one request of a batch."""

    index: int  # the request's place in the batch
    answer: Generation | Refusal


@dataclass(frozen=True, slots=True)
class Tokens:
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]  # of each token, if asked for
    max_model_len: int


@dataclass(frozen=True, slots=True)
class AdapterUsage:
    num_requests: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    queue_seconds: float
    last_used: float


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    number: int
    digest: str
    path: str
    loaded_at: float
    active: bool


@dataclass(frozen=True, slots=True)
class ModuleReport:
    name: str
    rank: int
    scaling: float
    norm: float
    gain_norm: float
    shift_norm: float
    rows_norm: float | None


@dataclass(frozen=True, slots=True)
class LayerReport:
    name: str
    norm: float


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """What an adapter changes, and why it is refused if it has problems."""

    path: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    kind: str
    digest: str
    modules: tuple[ModuleReport, ...]
    layers: tuple[LayerReport, ...]
    applied_tensors: tuple[str, ...]
    ignored_tensors: tuple[str, ...]
    num_disk_bytes: int
    num_host_bytes: int
    num_device_bytes: int
    num_pages: int
    vocab_size: int | None
    refused_tensors: tuple[str, ...]
    name_changes: tuple[str, ...]
    unknown_fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One version of a loaded adapter."""

    name: str
    digest: str
    path: str
    ranks: tuple[int, ...]
    modules: tuple[str, ...]
    num_bytes: int
    num_pages: int
    pinned: bool
    resident: bool
    num_requests: int
    warnings: tuple[str, ...]
    version: int
    versions: tuple[AdapterVersion, ...]
    usage: AdapterUsage
    num_copies: int
    invocation_tokens: tuple[int, ...]
    num_copied_bytes: int
    copy_seconds: float
    in_host_memory: bool
    set_aside: str
    owner: str
    report: AdapterReport | None  # of the load, from load_adapter and upload_adapter only


@dataclass(frozen=True, slots=True)
class AdapterSnapshot:
    """All loaded adapters: what was known before is replaced."""

    revision: int
    adapters: tuple[AdapterInfo, ...]


@dataclass(frozen=True, slots=True)
class AdapterEvent:
    revision: int
    kind: str  # "loaded", "activated", "removed", "resident", "evicted", "pinned" or "unpinned"
    name: str
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about the engine, its load and its counts; see the message GetInfoResponse."""

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


@dataclass(frozen=True, slots=True)
class LoadSnapshot:
    """A server's load, for routers; see the message WatchLoadResponse."""

    is_serving: bool
    num_running: int
    num_waiting: int
    num_queued_tokens: int
    num_refused: int
    num_pages: int
    num_free_pages: int
    resident_adapters: tuple[str, ...]
    num_requests: int
    num_generated_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    num_engine_deaths: int
    num_crashes: int


def generation(message: generation_pb2.GenerateResponse) -> Generation:
    return read(Generation, message)


def adapter(response: Any) -> AdapterInfo:
    """response: any that holds an adapter, and its report if it was loaded."""
    return read(AdapterInfo, response.adapter, report=_report_in(response))


def adapters(response: adapters_pb2.ListAdaptersResponse | adapters_pb2.AdapterSnapshot) -> list[AdapterInfo]:
    return [read(AdapterInfo, one, report=None) for one in response.adapters]


def _report_in(response: Any) -> AdapterReport | None:
    has_one = "report" in response.DESCRIPTOR.fields_by_name and response.HasField("report")
    return read(AdapterReport, response.report) if has_one else None


def adapter_news(message: adapters_pb2.WatchAdaptersResponse) -> AdapterSnapshot | AdapterEvent:
    if message.WhichOneof("news") == "snapshot":
        return AdapterSnapshot(message.revision, tuple(adapters(message.snapshot)))
    return read(AdapterEvent, message.event, revision=message.revision)


# From messages to data.


def read(kind: type[T], message: Any, **others: Any) -> T:
    """Returns a message as data: its fields by their names, a oneof by the value that is set. others: fields that the
    message does not have."""
    plan = _plan(cast(Any, kind), message.DESCRIPTOR)
    return kind(**{name: get(message) for name, get in plan if name not in others}, **others)


@cache
def _plan(kind: type[Any], descriptor: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Returns how each field of the data is read from the message."""
    hints = get_type_hints(kind)
    known = {*descriptor.fields_by_name, *descriptor.oneofs_by_name}
    names = [field.name for field in fields(kind) if field.name in known]
    return tuple((name, _getter(name, hints[name], descriptor)) for name in names)


def _getter(name: str, hint: Any, descriptor: Any) -> Callable[[Any], Any]:
    field: FieldDescriptor | None = descriptor.fields_by_name.get(name)
    if field is None:
        return partial(_chosen, name)
    convert = _converter(_inner(hint), field)
    if field.is_repeated:
        return lambda message: tuple(map(convert, getattr(message, name)))
    if field.has_presence and _is_optional(hint):
        return lambda message: convert(getattr(message, name)) if message.HasField(name) else None
    return lambda message: convert(getattr(message, name))


def _chosen(oneof: str, message: Any) -> Any:
    name = message.WhichOneof(oneof)
    return None if name is None else getattr(message, name)


def _converter(hint: Any, field: FieldDescriptor) -> Callable[[Any], Any]:
    if is_dataclass(hint):
        return partial(read, cast(Any, hint))
    if field.enum_type is not None:
        return partial(_enum_name, field.enum_type)
    return _as_it_is


def _as_it_is(value: Any) -> Any:
    return value


def _enum_name(enum: Any, number: int) -> str | None:
    """Returns a value's name without the enum's own, in small letters; None for what is unspecified. A newer server may
    send a value that this client has no name for."""
    if not number:
        return None
    value = enum.values_by_number.get(number)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(number) if value is None else value.name.removeprefix(prefix).lower()


def _inner(hint: Any) -> Any:
    """Returns X of X | None and of tuple[X, ...]."""
    if get_origin(hint) is tuple:
        return get_args(hint)[0]
    if _is_optional(hint):
        return next(kind for kind in get_args(hint) if kind is not NoneType)
    return hint


def _is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)
