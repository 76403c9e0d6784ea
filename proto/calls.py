"""Calls: each RPC of the server as data: the arguments of Python as its message, and how its answer is read.

The synchronous client and that for asyncio make the same calls; only they know how a call is sent.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import grpc

from . import results
from .conversation import CHAT_OPTIONS, to_chat
from .plain import BadValue, plain
from .rich_errors import details_of
from .v1 import adapters_pb2, engine_pb2, generation_pb2

T = TypeVar("T")

# The name of a loaded adapter; or name -> scale, in order, for one with a scale or a sum; or None, for the base model.
Adapter = str | Mapping[str, float] | None

# Text, token ids, which may be in an array, or a conversation: a list of messages, {"role": ..., "content": ...} with
# any further fields, or a dict of such "messages" and of options that go with them.
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | Mapping[str, Any]

# Files of a folder that are uploaded. The configuration has to be there, and the weights in one file or in several.
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
DIVIDED_WEIGHTS = ("adapter_model-*-of-*.safetensors", "adapter_model.safetensors.index.json")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
    "chat_template.jinja",
)
SIGNATURE_FILE = "adapter.sig"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Ask(Generic[T]):
    """One call: of a method of "Generation", "Adapter" or "Engine"."""

    service: str
    method: str
    request: Any  # a message, or an iterator of messages
    read: Callable[[Any], T]  # from a message of the answer
    is_watch: bool = False  # has no end of its own


def generate(prompt: Prompt, adapter: Adapter, **options: Any) -> Ask[results.Generation]:
    return Ask("Generation", "Generate", generate_request(prompt, adapter, **options), results.generation)


def generate_stream(prompt: Prompt, adapter: Adapter, **options: Any) -> Ask[Any]:
    request = generation_pb2.GenerateStreamRequest(request=generate_request(prompt, adapter, **options))
    return Ask("Generation", "GenerateStream", request, _as_it_is)


def generate_batch(requests: Iterable[Mapping[str, Any]]) -> Ask[results.BatchResult]:
    """All requests are converted, and so checked, before any is sent."""
    messages = [_one_of_batch(index, request) for index, request in enumerate(requests)]
    return Ask("Generation", "BatchGenerate", iter(messages), _batch_result)


def _one_of_batch(index: int, request: Mapping[str, Any]) -> generation_pb2.BatchGenerateRequest:
    if "prompt" not in request:
        raise ValueError(f"requests[{index}]: has no prompt")
    try:
        return generation_pb2.BatchGenerateRequest(request=generate_request(**{"adapter": None, **request}))
    except ValueError as error:
        raise ValueError(f"requests[{index}]: {error}") from error


def _batch_result(message: generation_pb2.BatchGenerateResponse) -> results.BatchResult:
    if message.WhichOneof("result") == "response":
        return results.BatchResult(message.index, results.generation(message.response))
    error = message.error
    code = next((code.name for code in grpc.StatusCode if code.value[0] == error.code), str(error.code))
    return results.BatchResult(message.index, results.Refusal(code, error.message, details_of(error)))


def tokenize(
    prompt: Prompt, adapter: Adapter, *, add_special_tokens: bool | None, with_texts: bool, **options: Any
) -> Ask[results.Tokens]:
    fields = _prompt_fields(prompt, options)
    if "token_ids" in fields:
        raise ValueError("prompt: token ids are no text")
    request = generation_pb2.TokenizeRequest(
        **fields,
        **_adapter_fields(adapter),
        with_texts=with_texts,
        add_special_tokens=add_special_tokens,
    )
    return Ask("Generation", "Tokenize", request, lambda message: results.read(results.Tokens, message))


def detokenize(token_ids: Sequence[int], adapter: Adapter, skip_special_tokens: bool) -> Ask[str]:
    request = generation_pb2.DetokenizeRequest(
        token_ids=token_ids, **_adapter_fields(adapter), skip_special_tokens=skip_special_tokens
    )
    return Ask("Generation", "Detokenize", request, lambda message: str(message.text))


def load_adapter(name: str, path: str, pinned: bool) -> Ask[results.AdapterInfo]:
    request = adapters_pb2.LoadAdapterRequest(name=name, path=path, pinned=pinned)
    return Ask("Adapter", "LoadAdapter", request, results.adapter)


def upload_adapter(name: str, folder: str | Path, pinned: bool) -> Ask[results.AdapterInfo]:
    """Reads the files. Raises OSError."""
    contents = {file.name: file.read_bytes() for file in _adapter_files(Path(folder))}
    return Ask("Adapter", "UploadAdapter", _upload(name, contents, pinned), results.adapter)


def inspect_adapter(path: str) -> Ask[results.AdapterReport]:
    request = adapters_pb2.InspectAdapterRequest(path=path)
    return Ask(
        "Adapter", "InspectAdapter", request, lambda message: results.read(results.AdapterReport, message.report)
    )


def activate_adapter(name: str, version: int) -> Ask[results.AdapterInfo]:
    request = adapters_pb2.ActivateAdapterRequest(name=name, version=version)
    return Ask("Adapter", "ActivateAdapter", request, results.adapter)


def warm_adapter(name: str) -> Ask[results.AdapterInfo]:
    return Ask("Adapter", "WarmAdapter", adapters_pb2.WarmAdapterRequest(name=name), results.adapter)


def unload_adapter(name: str, abort: bool) -> Ask[results.AdapterInfo]:
    return Ask("Adapter", "UnloadAdapter", adapters_pb2.UnloadAdapterRequest(name=name, abort=abort), results.adapter)


def pin_adapter(name: str, pinned: bool) -> Ask[results.AdapterInfo]:
    return Ask("Adapter", "PinAdapter", adapters_pb2.PinAdapterRequest(name=name, pinned=pinned), results.adapter)


def get_adapter(name: str) -> Ask[results.AdapterInfo]:
    return Ask("Adapter", "GetAdapter", adapters_pb2.GetAdapterRequest(name=name), results.adapter)


def list_adapters() -> Ask[list[results.AdapterInfo]]:
    return Ask("Adapter", "ListAdapters", adapters_pb2.ListAdaptersRequest(), results.adapters)


def watch_adapters() -> Ask[results.AdapterSnapshot | results.AdapterEvent]:
    return Ask("Adapter", "WatchAdapters", adapters_pb2.WatchAdaptersRequest(), results.adapter_news, True)


def info() -> Ask[results.EngineInfo]:
    return Ask(
        "Engine", "GetInfo", engine_pb2.GetInfoRequest(), lambda message: results.read(results.EngineInfo, message)
    )


def watch_load(most_per_second: float | None) -> Ask[results.LoadSnapshot]:
    request = engine_pb2.WatchLoadRequest(most_per_second=most_per_second)
    return Ask("Engine", "WatchLoad", request, lambda message: results.read(results.LoadSnapshot, message), True)


def abort(request_ids: Sequence[str]) -> Ask[None]:
    return Ask("Engine", "Abort", engine_pb2.AbortRequest(request_ids=request_ids), lambda _: None)


def _as_it_is(message: Any) -> Any:
    return message


# From arguments to messages.


def generate_request(
    prompt: Prompt,
    adapter: Adapter,
    *,
    request_id: str = "",
    priority: int = 0,
    cache_salt: str = "",
    max_first_token_seconds: float | None = None,
    **options: Any,
) -> generation_pb2.GenerateRequest:
    """options: fields of SamplingParams, and of ChatMessages for a conversation. Raises ValueError."""
    chat_options = {name: value for name, value in options.items() if name in CHAT_OPTIONS}
    sampling = {name: value for name, value in options.items() if name not in CHAT_OPTIONS}
    return generation_pb2.GenerateRequest(
        **_prompt_fields(prompt, chat_options),
        **_adapter_fields(adapter),
        sampling=_sampling(sampling),
        request_id=request_id,
        priority=priority,
        cache_salt=cache_salt,
        max_first_token_seconds=max_first_token_seconds,
    )


def _adapter_fields(adapter: Adapter) -> dict[str, Any]:
    if adapter is None:
        return {}
    if not adapter:  # on the wire it would mean the base model, which would answer in place of a forgotten name
        raise ValueError("adapter: the name is empty; pass None for the base model")
    if isinstance(adapter, str):
        return {"adapter": adapter}
    return {"adapters": [generation_pb2.AdapterUse(name=name, scale=scale) for name, scale in adapter.items()]}


def _prompt_fields(prompt: Prompt, options: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Returns the request's fields for a prompt. An empty sequence becomes an empty list of token ids, which the server
    refuses."""
    if isinstance(prompt, Mapping):
        return _prompt_fields_of(prompt, options)
    if hasattr(prompt, "tolist"):  # an array of numpy, torch or their kind
        return _prompt_fields(list(prompt.tolist()), options)
    if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
        return {"chat": to_chat(prompt, options)}
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name}: goes with a conversation only")
    if isinstance(prompt, str):
        return {"text": prompt}
    return {"token_ids": generation_pb2.TokenIds(ids=prompt)}  # type: ignore[arg-type]  # messages are handled above


def _prompt_fields_of(prompt: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in prompt.items() if name != "messages"}
    for name in own:
        if name not in CHAT_OPTIONS:
            raise ValueError(f"{name}: is none of messages, {', '.join(CHAT_OPTIONS)}")
    return {"chat": to_chat(prompt.get("messages", ()), {**options, **own})}


def _structured_outputs(value: Any) -> Any:
    """value: a mapping with the fields of the message, whose JSON may be values, and whose choice is a list."""
    if not isinstance(value, Mapping):
        raise BadValue("structured_outputs", f"is a {type(value).__name__} and no mapping such as {{'json': schema}}")
    fields = dict(value)
    for name in ("json", "structural_tag"):
        if isinstance(fields.get(name), Mapping):
            fields[name] = json.dumps(plain(f"structured_outputs.{name}", fields[name]), ensure_ascii=False)
    if isinstance(fields.get("choice"), Sequence) and not isinstance(fields["choice"], str):
        fields["choice"] = generation_pb2.Choices(choices=fields["choice"])
    return generation_pb2.StructuredOutputs(**fields)


def _sampling(sampling: Mapping[str, Any]) -> generation_pb2.SamplingParams:
    given = {name: value for name, value in sampling.items() if value is not None}
    for name in ("stop", "bad_words"):
        if isinstance(given.get(name), str):  # a string would be split into its letters
            given[name] = [given[name]]
    message = generation_pb2.SamplingParams()
    for name, value in given.items():
        try:
            value = _structured_outputs(value) if name == "structured_outputs" else value
            message.MergeFrom(generation_pb2.SamplingParams(**{name: value}))
        except (TypeError, ValueError) as error:  # the error does not name the field
            raise ValueError(f"{name}: {error}") from error
    return message


def _adapter_files(folder: Path) -> list[Path]:
    checkpoints = [] if (folder / CONFIG_FILE).exists() else list(folder.glob(f"checkpoint-*/{CONFIG_FILE}"))
    if len(checkpoints) == 1:
        folder = checkpoints[0].parent
    weights = [] if (folder / WEIGHTS_FILE).exists() else [f for glob in DIVIDED_WEIGHTS for f in folder.glob(glob)]
    texts = [folder / name for name in (*TOKENIZER_FILES, SIGNATURE_FILE) if (folder / name).exists()]
    return [folder / CONFIG_FILE, *(sorted(weights) or [folder / WEIGHTS_FILE]), *texts]


def _upload(name: str, contents: Mapping[str, bytes], pinned: bool) -> Iterator[adapters_pb2.UploadAdapterRequest]:
    files = [
        adapters_pb2.UploadedFile(name=file, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for file, content in contents.items()
    ]
    header = adapters_pb2.UploadHeader(name=name, files=files, pinned=pinned)
    yield adapters_pb2.UploadAdapterRequest(header=header)
    for content in contents.values():
        for first in range(0, len(content), CHUNK_BYTES):
            yield adapters_pb2.UploadAdapterRequest(chunk=content[first : first + CHUNK_BYTES])
