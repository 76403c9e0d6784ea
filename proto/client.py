"""A small synchronous client for back-end services: `Client(target)`.

Needs only grpcio, protobuf and googleapis-common-protos, and knows nothing of the engine. Answers are the protobuf
messages themselves. Failures are grpc.RpcError; the .proto files explain its `code()` and `details()`. For asyncio, use
the stubs in `blora.proto.v1` with a grpc.aio channel.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import grpc

from .conversation import CHAT_OPTIONS, to_chat
from .v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    engine_pb2,
    engine_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
)

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
CHUNK_BYTES = 1 << 20

MAX_ATTEMPTS = 5  # gRPC's own limit

CHANNEL_OPTIONS = (
    # Logprobs of a long prompt exceed the 4 MiB that a client accepts by default: RESOURCE_EXHAUSTED after the work.
    ("grpc.max_receive_message_length", 256 << 20),
    # Without keepalive, a stream would wait for ever for a server that vanished silently (lost host, silent NAT).
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class WrongProcess(RuntimeError):
    """A client is used in a child that was forked from its process. gRPC's threads did not come along, so that a call
    would wait for ever."""


class _HomeProcess:
    """This process."""

    def __init__(self) -> None:
        self._id = os.getpid()

    @property
    def is_here(self) -> bool:
        return os.getpid() == self._id

    def check(self) -> None:
        """Raises WrongProcess in a child that was forked."""
        if not self.is_here:
            raise WrongProcess(
                f"this client belongs to process {self._id}, from which this one was forked; make one in each child, "
                'or start children with multiprocessing.get_context("spawn")'
            )


class GenerationStream:
    """The answer of `Client.generate_stream`: an iterator over samples, each with the news since the last one. It
    belongs to one thread; any may cancel it.

    To leave it early, call `cancel()` or use a `with` block; the server then drops the request.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._home = _HomeProcess()
        self.prompt: generation_pb2.PromptInfo | None = None  # set by the first message

    def __iter__(self) -> Iterator[generation_pb2.Sample]:
        self._home.check()
        for response in self._call:
            if response.HasField("prompt"):
                self.prompt = response.prompt
            yield from response.samples

    def cancel(self) -> None:
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class Client:
    """Calls one server, "host:port". Close the client, or use it in a `with` block. Threads may share it. Any method
    but `close` raises WrongProcess in a child that was forked.

    credentials: None makes a plain connection. timeout: seconds that any call may last; None sets no limit. tenant:
    name of the tenant from whose fair share of service the requests are served. attempts: how often, at most 5 times, a
    generation is tried that is refused because the server has too much to do, or is not available; the server says how
    long to wait in between, and the timeout is for all attempts together.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float | None = None,
        tenant: str = "",
        attempts: int = 1,
    ) -> None:
        if not 1 <= attempts <= MAX_ATTEMPTS:
            raise ValueError(f"attempts: {attempts} is not from 1 to {MAX_ATTEMPTS}")
        self.target = target
        self._timeout = timeout
        self._metadata = (("x-tenant-id", tenant),) if tenant else ()
        self._home = _HomeProcess()
        self._channel = _open(target, credentials, attempts)
        self._generation = _Stub(generation_pb2_grpc.GenerationServiceStub, self._channel, self._home)
        self._adapters = _Stub(adapters_pb2_grpc.AdapterServiceStub, self._channel, self._home)
        self._engine = _Stub(engine_pb2_grpc.EngineServiceStub, self._channel, self._home)

    def generate(
        self,
        prompt: Prompt,
        adapter: Adapter = None,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        max_first_token_seconds: float | None = None,
        **options: Any,
    ) -> generation_pb2.GenerateResponse:
        """Returns all samples at once. `options` are fields of the message SamplingParams, and for a conversation those
        of ChatMessages, such as `tools` and `chat_template_kwargs`, in Python's types; one that is missing or None has
        its default. max_first_token_seconds: how long the caller waits for the first token. Raises ValueError naming a
        field whose value no message can hold."""
        limit = max_first_token_seconds
        request = _generate_request(prompt, adapter, request_id, priority, cache_salt, options, limit)
        response: generation_pb2.GenerateResponse = self._generation.Generate(
            request, timeout=self._timeout, metadata=self._metadata
        )
        return response

    def generate_stream(
        self,
        prompt: Prompt,
        adapter: Adapter = None,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        max_first_token_seconds: float | None = None,
        **options: Any,
    ) -> GenerationStream:
        """Returns samples as their tokens come. The arguments are those of `generate`."""
        limit = max_first_token_seconds
        request = _generate_request(prompt, adapter, request_id, priority, cache_salt, options, limit)
        streamed = generation_pb2.GenerateStreamRequest(request=request)
        call = self._generation.GenerateStream(streamed, timeout=self._timeout, metadata=self._metadata)
        return GenerationStream(call)

    def load_adapter(self, name: str, path: str, *, pinned: bool = False) -> adapters_pb2.Adapter:
        """Loads or replaces an adapter from a folder of the server, or from the hub if the server allows it. The answer
        has the report of the load."""
        request = adapters_pb2.LoadAdapterRequest(name=name, path=path, pinned=pinned)
        return _loaded(self._adapters.LoadAdapter(request, timeout=self._timeout))

    def upload_adapter(self, name: str, folder: str | Path, *, pinned: bool = False) -> adapters_pb2.Adapter:
        """Loads or replaces an adapter from a folder of this machine, by sending its files: those of the folder, or of
        its only checkpoint-N. Raises OSError if the configuration or the weights are missing."""
        contents = {file.name: file.read_bytes() for file in _adapter_files(Path(folder))}
        return _loaded(self._adapters.UploadAdapter(_upload(name, contents, pinned), timeout=self._timeout))

    def inspect_adapter(self, path: str) -> adapters_pb2.AdapterReport:
        """Reports the result of loading a folder of the server, without loading it."""
        request = adapters_pb2.InspectAdapterRequest(path=path)
        report: adapters_pb2.AdapterReport = self._adapters.InspectAdapter(request, timeout=self._timeout).report
        return report

    def activate_adapter(self, name: str, version: int) -> adapters_pb2.Adapter:
        """Makes a name mean a version that the server keeps, such as the one before."""
        request = adapters_pb2.ActivateAdapterRequest(name=name, version=version)
        return _adapter(self._adapters.ActivateAdapter(request, timeout=self._timeout))

    def warm_adapter(self, name: str) -> adapters_pb2.Adapter:
        """Starts to copy an adapter into the engine's memory, where it may be evicted again."""
        return _adapter(self._adapters.WarmAdapter(adapters_pb2.WarmAdapterRequest(name=name), timeout=self._timeout))

    def unload_adapter(self, name: str, *, abort: bool = False) -> adapters_pb2.Adapter:
        """Unloads an adapter, or with "name@2" one version. Returns when the requests that use it are finished, or
        aborted."""
        request = adapters_pb2.UnloadAdapterRequest(name=name, abort=abort)
        return _adapter(self._adapters.UnloadAdapter(request, timeout=self._timeout))

    def watch_adapters(self) -> Any:
        """Returns an iterator over WatchAdaptersResponse: a snapshot, then events. Its `cancel()` ends it."""
        return self._adapters.WatchAdapters(adapters_pb2.WatchAdaptersRequest(), timeout=self._timeout)

    def pin_adapter(self, name: str, pinned: bool = True) -> adapters_pb2.Adapter:
        """Pins an adapter in the engine's memory, or ends its pin."""
        request = adapters_pb2.PinAdapterRequest(name=name, pinned=pinned)
        return _adapter(self._adapters.PinAdapter(request, timeout=self._timeout))

    def get_adapter(self, name: str) -> adapters_pb2.Adapter:
        """Returns one adapter."""
        return _adapter(self._adapters.GetAdapter(adapters_pb2.GetAdapterRequest(name=name), timeout=self._timeout))

    def list_adapters(self) -> list[adapters_pb2.Adapter]:
        """Returns the active version of every name, by name."""
        return list(self._adapters.ListAdapters(adapters_pb2.ListAdaptersRequest(), timeout=self._timeout).adapters)

    def info(self) -> engine_pb2.GetInfoResponse:
        """Returns facts about the engine and its load."""
        response: engine_pb2.GetInfoResponse = self._engine.GetInfo(engine_pb2.GetInfoRequest(), timeout=self._timeout)
        return response

    def abort(self, *request_ids: str) -> None:
        """Ends requests by `PromptInfo.request_id`. Unknown ids and those of finished requests are allowed."""
        self._engine.Abort(engine_pb2.AbortRequest(request_ids=request_ids), timeout=self._timeout)

    def close(self) -> None:
        if self._home.is_here:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(target: str, credentials: grpc.ChannelCredentials | None, attempts: int) -> grpc.Channel:
    retries = (("grpc.service_config", _service_config(attempts)),) if attempts > 1 else ()
    options = CHANNEL_OPTIONS + retries
    return (
        grpc.insecure_channel(target, options)
        if credentials is None
        else grpc.secure_channel(target, credentials, options)
    )


def _service_config(attempts: int) -> str:
    """Returns the service config with which gRPC itself tries again. Where a refusal says how long to wait, that counts
    in place of the backoff."""
    policy = {
        "maxAttempts": attempts,
        "initialBackoff": "0.5s",
        "maxBackoff": "10s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"],
    }
    service = {"service": generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name}
    return json.dumps({"methodConfig": [{"name": [service], "retryPolicy": policy}]})


class _Stub:
    """A service, in its own process. The generated classes are untyped; this is the one place that says so."""

    def __init__(self, stub: Any, channel: grpc.Channel, home: _HomeProcess) -> None:
        self._stub = stub(channel)
        self._home = home

    def __getattr__(self, method: str) -> Any:
        self._home.check()
        return getattr(self._stub, method)


def _adapter_files(folder: Path) -> list[Path]:
    checkpoints = [] if (folder / CONFIG_FILE).exists() else list(folder.glob(f"checkpoint-*/{CONFIG_FILE}"))
    if len(checkpoints) == 1:
        folder = checkpoints[0].parent
    weights = [] if (folder / WEIGHTS_FILE).exists() else [f for glob in DIVIDED_WEIGHTS for f in folder.glob(glob)]
    texts = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
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


def _adapter(response: Any) -> adapters_pb2.Adapter:
    adapter: adapters_pb2.Adapter = response.adapter
    return adapter


def _loaded(response: Any) -> adapters_pb2.Adapter:
    adapter = _adapter(response)
    adapter.report.CopyFrom(response.report)
    return adapter


def _generate_request(
    prompt: Prompt,
    adapter: Adapter,
    request_id: str,
    priority: int,
    cache_salt: str,
    options: Mapping[str, Any],
    max_first_token_seconds: float | None = None,
) -> generation_pb2.GenerateRequest:
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


def _sampling(sampling: Mapping[str, Any]) -> generation_pb2.SamplingParams:
    given = {name: value for name, value in sampling.items() if value is not None}
    for name in ("stop", "bad_words"):
        if isinstance(given.get(name), str):  # a string would be split into its letters
            given[name] = [given[name]]
    message = generation_pb2.SamplingParams()
    for name, value in given.items():
        try:
            message.MergeFrom(generation_pb2.SamplingParams(**{name: value}))
        except (TypeError, ValueError) as error:  # the error does not name the field
            raise ValueError(f"{name}: {error}") from error
    return message
