"""Protobuf messages <-> the engine's own types. With convert_output.py the only file of the server that touches message
fields.

It checks for errors that only the wire can bring: bytes that are no message, a missing oneof. The engine's validator
checks the values, for in-process callers too. Packed lists are small on the wire and large as Python objects, so their
lengths are checked here, before a list is copied.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from blora.adapters.report import AdapterReport
from blora.proto.v1 import adapters_pb2, engine_pb2, generation_pb2
from blora.scheduler import RequestOutputKind, SamplingParams, StructuredOutputsParams

from ..adapter_store.upload import UploadedFile
from ..errors import InvalidRequest
from ..front_end.adapter_choice import Adapter, check_number
from ..front_end.validator import check_count
from ..outputs import (
    AdapterEvent,
    AdapterInfo,
    EngineInfo,
    LoRARequest,
)
from ..text.wire_chat import WireChat, chat_prompt, check_num_items
from .generation import checked_label
from .long_lists import LONG_LISTS

M = TypeVar("M", bound=Message)

MAX_IDS = 1 << 16  # of requests to abort; more than are ever unfinished
MAX_CHOICES = 1 << 15  # more cannot fit a grammar
MOST_CHAT_HERE = 4096  # bytes of a conversation that is converted here; a longer one stays as it came

EVENT_KINDS = {
    "loaded": adapters_pb2.ADAPTER_EVENT_KIND_LOADED,
    "activated": adapters_pb2.ADAPTER_EVENT_KIND_ACTIVATED,
    "removed": adapters_pb2.ADAPTER_EVENT_KIND_REMOVED,
    "resident": adapters_pb2.ADAPTER_EVENT_KIND_RESIDENT,
    "evicted": adapters_pb2.ADAPTER_EVENT_KIND_EVICTED,
    "pinned": adapters_pb2.ADAPTER_EVENT_KIND_PINNED,
    "unpinned": adapters_pb2.ADAPTER_EVENT_KIND_UNPINNED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCall:
    """The arguments of one call of the engine's `generate`."""

    prompt: dict[str, Any]
    sampling_params: SamplingParams
    label: str  # the client's request id, not unique
    adapter: Adapter
    priority: int
    first_token_seconds: float | None  # that the client waits for the first token


def parse(message_type: type[M], data: bytes) -> M:
    try:
        return message_type.FromString(data)
    except DecodeError:
        raise InvalidRequest("message", f"is not a valid {message_type.DESCRIPTOR.full_name}") from None


def inner_request(
    request: generation_pb2.GenerateStreamRequest | generation_pb2.BatchGenerateRequest,
) -> generation_pb2.GenerateRequest:
    if not request.HasField("request"):
        raise InvalidRequest("request", "is missing")
    return request.request


def generate_call(
    request: generation_pb2.GenerateRequest,
    defaults: SamplingParams,
    output_kind: RequestOutputKind,
    most_listed: Mapping[str, int],
    lists: Mapping[str, Any],
) -> GenerateCall:
    """most_listed: the most entries of each list, by the name of its field. lists: from `long_lists`."""
    return GenerateCall(
        prompt=_prompt(request, most_listed),
        sampling_params=replace(defaults, **_given(request.sampling, most_listed), **lists, output_kind=output_kind),
        label=checked_label("request_id", request.request_id),
        adapter=adapter_of(request),
        priority=request.priority,
        first_token_seconds=_first_token_seconds(request),
    )


def _prompt(request: generation_pb2.GenerateRequest, most_listed: Mapping[str, int]) -> dict[str, Any]:
    salt = {"cache_salt": request.cache_salt} if request.cache_salt else {}
    match request.WhichOneof("prompt"):
        case "text":
            return {"prompt": request.text, **salt}
        case "token_ids":
            return {"prompt_token_ids": _token_ids(request, most_listed["prompt_token_ids"]), **salt}
        case "chat":
            return {**chat_of(request.chat), **salt}
    raise InvalidRequest("prompt", "is missing; send one of text, token_ids and chat")


def chat_of(chat: generation_pb2.ChatMessages) -> dict[str, Any]:
    check_num_items(len(chat.messages))  # before anything looks at each of them
    return chat_prompt(chat) if chat.ByteSize() <= MOST_CHAT_HERE else {"wire_chat": WireChat.of(chat)}


def _token_ids(request: generation_pb2.GenerateRequest, most: int) -> list[int]:
    if request.sampling.HasField("truncate_prompt_tokens"):
        return request.token_ids.ids[-most - 1 :]  # a list; one too many is enough to be refused
    check_count("prompt_token_ids", len(request.token_ids.ids), most)
    return list(request.token_ids.ids)


def _given(message: generation_pb2.SamplingParams, most_listed: Mapping[str, int]) -> dict[str, Any]:
    """Returns the fields that the client has set, by their names, which message and SamplingParams share, but for the
    long lists."""
    given = {
        field.name: _plain(field.name, value, most_listed)
        for field, value in message.ListFields()
        if field.name not in LONG_LISTS
    }
    for name in ("logprobs", "prompt_logprobs"):
        if given.get(name, 0) < 0:  # a parser may have cut it; and the whole vocabulary would not fit a message
            raise InvalidRequest(name, f"{given[name]} is below 0; the whole vocabulary is reported in process only")
    return given


def _plain(name: str, value: Any, most_listed: Mapping[str, int]) -> Any:
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, generation_pb2.StructuredOutputs):
        return _structured_outputs(value)
    check_count(name, len(value), most_listed[name])
    return tuple(value)


def _structured_outputs(message: generation_pb2.StructuredOutputs) -> StructuredOutputsParams:
    given = {field.name: value for field, value in message.ListFields()}
    if message.WhichOneof("constraint") == "choice":
        if len(message.choice.choices) > MAX_CHOICES:  # before they are copied
            reason = f"{len(message.choice.choices)} texts are more than the {MAX_CHOICES} allowed"
            raise InvalidRequest("structured_outputs.choice", reason)
        given["choice"] = list(message.choice.choices)
    return StructuredOutputsParams(**given)


def adapter_of(
    request: generation_pb2.GenerateRequest | generation_pb2.TokenizeRequest | generation_pb2.DetokenizeRequest,
) -> Adapter:
    if not request.adapters:
        return request.adapter or None
    if request.adapter:
        raise InvalidRequest("adapters", "are given besides adapter; send one of the two")
    check_number(len(request.adapters))
    return [_adapter_use(use) for use in request.adapters]


def _adapter_use(use: generation_pb2.AdapterUse) -> LoRARequest:
    name = _required("adapters.name", use.name)
    return LoRARequest(name, lora_scale=use.scale) if use.HasField("scale") else LoRARequest(name)


def _first_token_seconds(request: generation_pb2.GenerateRequest) -> float | None:
    if not request.HasField("max_first_token_seconds"):
        return None
    seconds = request.max_first_token_seconds
    if not 0 < seconds < math.inf:
        raise InvalidRequest("max_first_token_seconds", f"{seconds} is not a number of seconds above 0")
    return seconds


def load_arguments(request: adapters_pb2.LoadAdapterRequest) -> tuple[str, str, bool]:
    """Returns name, path and pinned."""
    return _required("name", request.name), _required("path", request.path), request.pinned


def upload_arguments(
    request: adapters_pb2.UploadAdapterRequest | None,
) -> tuple[str, list[UploadedFile], bool]:
    """Returns name, files and pinned of the first message."""
    if request is None or request.WhichOneof("part") != "header":
        raise InvalidRequest("header", "is missing; send it in the first message")
    header = request.header
    files = [UploadedFile(file.name, file.num_bytes, file.sha256) for file in header.files]
    if not files:
        raise InvalidRequest("files", "are missing")
    return _required("name", header.name), files, header.pinned


def upload_chunk(request: adapters_pb2.UploadAdapterRequest) -> bytes:
    """Returns the chunk of any message but the first."""
    if request.WhichOneof("part") != "chunk":
        raise InvalidRequest("chunk", "is missing")
    return request.chunk


def pin_arguments(request: adapters_pb2.PinAdapterRequest) -> tuple[str, bool]:
    """Returns name and pinned."""
    return _required("name", request.name), request.pinned if request.HasField("pinned") else True


def activate_arguments(request: adapters_pb2.ActivateAdapterRequest) -> tuple[str, int]:
    """Returns name and version."""
    if not request.version:
        raise InvalidRequest("version", "is missing")
    return _required("name", request.name), request.version


def unload_arguments(request: adapters_pb2.UnloadAdapterRequest) -> tuple[str, bool]:
    """Returns name and abort."""
    return _required("name", request.name), request.abort


def adapter_name(request: adapters_pb2.WarmAdapterRequest | adapters_pb2.GetAdapterRequest) -> str:
    return _required("name", request.name)


def adapter_path(request: adapters_pb2.InspectAdapterRequest) -> str:
    return _required("path", request.path)


def _required(name: str, value: str) -> str:
    if not value:
        raise InvalidRequest(name, "is missing")
    return value


def request_ids(request: engine_pb2.AbortRequest) -> list[str]:
    if len(request.request_ids) > MAX_IDS:
        raise InvalidRequest("request_ids", f"has {len(request.request_ids)} entries; at most {MAX_IDS} are read")
    return list(request.request_ids)


def adapter(info: AdapterInfo) -> adapters_pb2.Adapter:
    """Returns the message, whose fields have the names of AdapterInfo's but for the report, which is sent beside it; a
    test compares them."""
    nested = {
        "versions": [adapters_pb2.AdapterVersion(**_fields(version)) for version in info.versions],
        "usage": adapters_pb2.AdapterUsage(**_fields(info.usage)),
    }
    values = _fields(info) | nested
    del values["report"]
    return adapters_pb2.Adapter(**values)


def _fields(value: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass. `asdict` copies deeply, which is slow where there are thousands."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def report(report: AdapterReport) -> adapters_pb2.AdapterReport:
    """Returns the message, whose fields have the names of AdapterReport's, but for `text`; a test compares them."""
    return adapters_pb2.AdapterReport(**{name: value for name, value in asdict(report).items() if name != "text"})


def loaded(info: AdapterInfo) -> adapters_pb2.LoadAdapterResponse:
    of_load = None if info.report is None else report(info.report)
    return adapters_pb2.LoadAdapterResponse(adapter=adapter(info), report=of_load)


def uploaded(info: AdapterInfo) -> adapters_pb2.UploadAdapterResponse:
    of_load = None if info.report is None else report(info.report)
    return adapters_pb2.UploadAdapterResponse(adapter=adapter(info), report=of_load)


def inspected(found: AdapterReport) -> adapters_pb2.InspectAdapterResponse:
    return adapters_pb2.InspectAdapterResponse(report=report(found))


def activated(info: AdapterInfo) -> adapters_pb2.ActivateAdapterResponse:
    return adapters_pb2.ActivateAdapterResponse(adapter=adapter(info))


def unloaded(info: AdapterInfo) -> adapters_pb2.UnloadAdapterResponse:
    return adapters_pb2.UnloadAdapterResponse(adapter=adapter(info))


def warmed(info: AdapterInfo) -> adapters_pb2.WarmAdapterResponse:
    return adapters_pb2.WarmAdapterResponse(adapter=adapter(info))


def snapshot_part(revision: int, infos: Iterable[AdapterInfo]) -> adapters_pb2.WatchAdaptersResponse:
    snapshot = adapters_pb2.AdapterSnapshot(adapters=map(adapter, infos))
    return adapters_pb2.WatchAdaptersResponse(revision=revision, snapshot=snapshot)


def adapter_event(news: AdapterEvent) -> adapters_pb2.WatchAdaptersResponse:
    event = adapters_pb2.AdapterEvent(
        kind=EVENT_KINDS[news.kind], name=news.name, version=news.version, digest=news.digest
    )
    return adapters_pb2.WatchAdaptersResponse(revision=news.revision, event=event)


def pinned(info: AdapterInfo) -> adapters_pb2.PinAdapterResponse:
    return adapters_pb2.PinAdapterResponse(adapter=adapter(info))


def found(info: AdapterInfo) -> adapters_pb2.GetAdapterResponse:
    return adapters_pb2.GetAdapterResponse(adapter=adapter(info))


def listed_part(infos: Iterable[AdapterInfo]) -> adapters_pb2.ListAdaptersResponse:
    return adapters_pb2.ListAdaptersResponse(adapters=map(adapter, infos))


def engine_info(info: EngineInfo) -> engine_pb2.GetInfoResponse:
    """Returns the message, whose fields have the names of EngineInfo's; a test compares them."""
    return engine_pb2.GetInfoResponse(**asdict(info))


def aborted() -> engine_pb2.AbortResponse:
    return engine_pb2.AbortResponse()
