"""Clients for back-end services: `Client(target)`, and `AsyncClient(target)` for asyncio.

They need only grpcio, protobuf and googleapis-common-protos, and know nothing of the engine. Failures are
grpc.RpcError; the .proto files explain its `code()` and `details()`, and `details_of` reads more of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, Unpack

import grpc

from . import calls
from .async_client import AsyncClient, AsyncGenerationStream, AsyncResults
from .calls import Adapter, Ask, Prompt
from .connection import CallOptions, Connection, HomeProcess, Metadata, Wire, WrongProcess
from .results import (
    AdapterEvent,
    AdapterInfo,
    AdapterReport,
    AdapterSnapshot,
    AdapterUsage,
    AdapterVersion,
    BatchResult,
    EngineInfo,
    Generation,
    LayerReport,
    LoadSnapshot,
    ModuleReport,
    PositionLogprobs,
    PromptInfo,
    Refusal,
    Sample,
    Timings,
    TokenLogprob,
    Tokens,
)
from .rich_errors import ErrorDetails, details_of
from .stream_reader import StreamReader

__all__ = [
    "Adapter",
    "AdapterEvent",
    "AdapterInfo",
    "AdapterReport",
    "AdapterSnapshot",
    "AdapterUsage",
    "AdapterVersion",
    "AsyncClient",
    "AsyncGenerationStream",
    "AsyncResults",
    "BatchResult",
    "CallOptions",
    "Client",
    "EngineInfo",
    "ErrorDetails",
    "Generation",
    "GenerationStream",
    "LayerReport",
    "LoadSnapshot",
    "Metadata",
    "ModuleReport",
    "PositionLogprobs",
    "Prompt",
    "PromptInfo",
    "Refusal",
    "Results",
    "Sample",
    "Timings",
    "TokenLogprob",
    "Tokens",
    "WrongProcess",
    "details_of",
]

T = TypeVar("T")


class GenerationStream:
    """The answer of `Client.generate_stream`: an iterator over samples, each with the news since the last one. It
    belongs to one thread; any may cancel it. `prompt`, `prompt_logprobs` and `timings` are about the request.

    To leave it early, call `cancel()` or use a `with` block; the server then drops the request.
    """

    def __init__(self, call: Any) -> None:
        self._call, self._reader, self._home = call, StreamReader(), HomeProcess()

    @property
    def prompt(self) -> PromptInfo | None:
        """None before the first message."""
        return self._reader.prompt

    @property
    def prompt_logprobs(self) -> list[PositionLogprobs]:
        """Those that have come so far."""
        return self._reader.prompt_logprobs

    @property
    def timings(self) -> Timings | None:
        """None before the end."""
        return self._reader.timings

    def __iter__(self) -> Iterator[Sample]:
        self._home.check()
        for message in self._call:
            yield from self._reader.read(message)

    def cancel(self) -> None:
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class Results(Generic[T]):
    """The results of one call as they come: an iterator. To leave it early, call `cancel()`, which any thread may, or
    use a `with` block."""

    def __init__(self, call: Any, read: Callable[[Any], T]) -> None:
        self._call, self._read, self._home = call, read, HomeProcess()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        self._home.check()
        return self._read(next(self._call))

    def cancel(self) -> None:
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class Client:
    """Calls one server, "host:port" or "unix:PATH". Close the client, or use it in a `with` block. Threads may share
    it. Any method but `close` raises WrongProcess in a child that was forked.

    root_certificates: in PEM, those that the server's certificate is checked against; private_key and
    certificate_chain: the client's own, where the server wants one (mTLS). Any of them makes a TLS connection; b"" as
    root_certificates trusts what the machine trusts. credentials: anything else that gRPC offers. Without all of these
    the connection is plain.
    token: sent with each call as `authorization: Bearer`; a plain connection shows it to the network. tenant: name of
    the tenant from whose fair share of service the requests are served. metadata: sent with each call, besides.
    timeout: seconds that any call but a watch may last; None sets no limit. attempts: how often, at most 5 times, a
    generation is tried while the server is not available; never one of which a message has come, nor one that a full
    server refuses, which says when to ask again. The timeout is for all attempts together.
    channel_options: gRPC's own, by name, over those that the client sets.
    Every method takes a timeout and metadata of its own, too.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        root_certificates: bytes | None = None,
        private_key: bytes | None = None,
        certificate_chain: bytes | None = None,
        token: str | None = None,
        tenant: str = "",
        timeout: float | None = None,
        metadata: Metadata = (),
        attempts: int = 1,
        channel_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.target = target
        connection = Connection(
            target=target,
            credentials=credentials,
            root_certificates=root_certificates,
            private_key=private_key,
            certificate_chain=certificate_chain,
            token=token,
            tenant=tenant,
            timeout=timeout,
            metadata=metadata,
            attempts=attempts,
            channel_options=channel_options,
        )
        self._wire = Wire(connection, grpc)

    def generate(
        self,
        prompt: Prompt,
        adapter: Adapter = None,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        max_first_token_seconds: float | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
        **options: Any,
    ) -> Generation:
        """Returns all samples at once. `options` are fields of the message SamplingParams, and for a conversation those
        of ChatMessages, such as `tools` and `chat_template_kwargs`, in Python's types; one that is missing or None has
        its default. max_first_token_seconds: how long the caller waits for the first token. Raises ValueError naming a
        field whose value no message can hold."""
        ask = calls.generate(
            prompt,
            adapter,
            request_id=request_id,
            priority=priority,
            cache_salt=cache_salt,
            max_first_token_seconds=max_first_token_seconds,
            **options,
        )
        return self._ask(ask, {"timeout": timeout, "metadata": metadata})

    def generate_stream(
        self,
        prompt: Prompt,
        adapter: Adapter = None,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        max_first_token_seconds: float | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
        **options: Any,
    ) -> GenerationStream:
        """Returns samples as their tokens come. The arguments are those of `generate`."""
        ask = calls.generate_stream(
            prompt,
            adapter,
            request_id=request_id,
            priority=priority,
            cache_salt=cache_salt,
            max_first_token_seconds=max_first_token_seconds,
            **options,
        )
        return GenerationStream(self._wire.send(ask, {"timeout": timeout, "metadata": metadata}))

    def generate_batch(
        self, requests: Iterable[Mapping[str, Any]], **call: Unpack[CallOptions]
    ) -> Results[BatchResult]:
        """Sends several requests in one call, each a mapping of the arguments of `generate`, and yields their ends as
        they come, in any order. One that fails is a result with a refusal."""
        ask = calls.generate_batch(requests)
        return Results(self._wire.send(ask, call), ask.read)

    def tokenize(
        self,
        prompt: Prompt,
        adapter: Adapter = None,
        *,
        add_special_tokens: bool | None = None,
        with_texts: bool = False,
        timeout: float | None = None,
        metadata: Metadata = (),
        **options: Any,
    ) -> Tokens:
        """Returns the tokens that a request with this prompt and adapter has. with_texts: whether the text of each is
        wanted, too. options: those of a conversation."""
        ask = calls.tokenize(prompt, adapter, add_special_tokens=add_special_tokens, with_texts=with_texts, **options)
        return self._ask(ask, {"timeout": timeout, "metadata": metadata})

    def detokenize(
        self,
        token_ids: Sequence[int],
        adapter: Adapter = None,
        *,
        skip_special_tokens: bool = False,
        **call: Unpack[CallOptions],
    ) -> str:
        """Returns the text of tokens."""
        return self._ask(calls.detokenize(token_ids, adapter, skip_special_tokens), call)

    def load_adapter(self, name: str, path: str, *, pinned: bool = False, **call: Unpack[CallOptions]) -> AdapterInfo:
        """Loads or replaces an adapter from a folder of the server, or from the hub if the server allows it. The result
        has the report of the load."""
        return self._ask(calls.load_adapter(name, path, pinned), call)

    def upload_adapter(
        self, name: str, folder: str | Path, *, pinned: bool = False, **call: Unpack[CallOptions]
    ) -> AdapterInfo:
        """Loads or replaces an adapter from a folder of this machine, by sending its files: those of the folder, or of
        its only checkpoint-N. Raises OSError if the configuration or the weights are missing."""
        return self._ask(calls.upload_adapter(name, folder, pinned), call)

    def inspect_adapter(self, path: str, **call: Unpack[CallOptions]) -> AdapterReport:
        """Reports the result of loading a folder of the server, without loading it."""
        return self._ask(calls.inspect_adapter(path), call)

    def activate_adapter(self, name: str, version: int, **call: Unpack[CallOptions]) -> AdapterInfo:
        """Makes a name mean a version that the server keeps, such as the one before."""
        return self._ask(calls.activate_adapter(name, version), call)

    def warm_adapter(self, name: str, **call: Unpack[CallOptions]) -> AdapterInfo:
        """Starts to copy an adapter into the engine's memory, where it may be evicted again."""
        return self._ask(calls.warm_adapter(name), call)

    def unload_adapter(self, name: str, *, abort: bool = False, **call: Unpack[CallOptions]) -> AdapterInfo:
        """Unloads an adapter, or with "name@2" one version. Returns when the requests that use it are finished, or
        aborted."""
        return self._ask(calls.unload_adapter(name, abort), call)

    def pin_adapter(self, name: str, pinned: bool = True, **call: Unpack[CallOptions]) -> AdapterInfo:
        """Pins an adapter in the engine's memory, or ends its pin."""
        return self._ask(calls.pin_adapter(name, pinned), call)

    def get_adapter(self, name: str, **call: Unpack[CallOptions]) -> AdapterInfo:
        """Returns one adapter."""
        return self._ask(calls.get_adapter(name), call)

    def list_adapters(self, **call: Unpack[CallOptions]) -> list[AdapterInfo]:
        """Returns the active version of every name, by name."""
        return self._ask(calls.list_adapters(), call)

    def watch_adapters(self, **call: Unpack[CallOptions]) -> Results[AdapterSnapshot | AdapterEvent]:
        """Yields a snapshot, then events, until it is cancelled. The client's timeout does not end it."""
        ask = calls.watch_adapters()
        return Results(self._wire.send(ask, call), ask.read)

    def info(self, **call: Unpack[CallOptions]) -> EngineInfo:
        """Returns facts about the engine and its load."""
        return self._ask(calls.info(), call)

    def watch_load(self, most_per_second: float | None = None, **call: Unpack[CallOptions]) -> Results[LoadSnapshot]:
        """Yields the server's load whenever it has changed, until it is cancelled. The client's timeout does not end
        it."""
        ask = calls.watch_load(most_per_second)
        return Results(self._wire.send(ask, call), ask.read)

    def abort(self, *request_ids: str, **call: Unpack[CallOptions]) -> None:
        """Ends requests by `PromptInfo.request_id`. Unknown ids and those of finished requests are allowed."""
        self._ask(calls.abort(request_ids), call)

    def _ask(self, ask: Ask[T], call: CallOptions) -> T:
        return ask.read(self._wire.send(ask, call))

    def close(self) -> None:
        if self._wire.is_here:
            self._wire.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
