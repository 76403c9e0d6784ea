"""The client for asyncio: `AsyncClient(target)`. It makes the same calls as `Client`, and needs no more."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, Unpack

import grpc

from . import calls
from .calls import Adapter, Ask, Prompt
from .connection import CallOptions, Connection, HomeProcess, Metadata, Wire
from .results import (
    AdapterEvent,
    AdapterInfo,
    AdapterReport,
    AdapterSnapshot,
    BatchResult,
    EngineInfo,
    Generation,
    LoadSnapshot,
    PositionLogprobs,
    PromptInfo,
    Sample,
    Timings,
    Tokens,
)
from .stream_reader import StreamReader

T = TypeVar("T")


class AsyncGenerationStream:
    """The answer of `AsyncClient.generate_stream`: an asynchronous iterator over samples, each with the news since the
    last one. `prompt`, `prompt_logprobs` and `timings` are about the request.

    To leave it early, call `cancel()` or use an `async with` block; the server then drops the request.
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

    async def __aiter__(self) -> AsyncIterator[Sample]:
        self._home.check()
        async for message in self._call:
            for sample in self._reader.read(message):
                yield sample

    def cancel(self) -> None:
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class AsyncResults(Generic[T]):
    """The results of one call as they come: an asynchronous iterator. To leave it early, call `cancel()` or use an
    `async with` block."""

    def __init__(self, call: Any, read: Callable[[Any], T]) -> None:
        self._call, self._read = call, read

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        message = await self._call.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return self._read(message)

    def cancel(self) -> None:
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class AsyncClient:
    """`Client` for asyncio: its arguments and its methods are the same, and the methods are coroutines, or asynchronous
    iterators where Client's are iterators. It belongs to one event loop.
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
        self._wire = Wire(connection, grpc.aio)

    async def generate(
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
        return await self._ask(ask, {"timeout": timeout, "metadata": metadata})

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
    ) -> AsyncGenerationStream:
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
        return AsyncGenerationStream(self._wire.send(ask, {"timeout": timeout, "metadata": metadata}))

    def generate_batch(
        self, requests: Iterable[Mapping[str, Any]], **call: Unpack[CallOptions]
    ) -> AsyncResults[BatchResult]:
        """Sends several requests in one call, each a mapping of the arguments of `generate`, and yields their ends as
        they come, in any order. One that fails is a result with a refusal."""
        ask = calls.generate_batch(requests)
        return AsyncResults(self._wire.send(ask, call), ask.read)

    async def tokenize(
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
        return await self._ask(ask, {"timeout": timeout, "metadata": metadata})

    async def detokenize(
        self,
        token_ids: Sequence[int],
        adapter: Adapter = None,
        *,
        skip_special_tokens: bool = False,
        **call: Unpack[CallOptions],
    ) -> str:
        """Returns the text of tokens."""
        return await self._ask(calls.detokenize(token_ids, adapter, skip_special_tokens), call)

    async def load_adapter(
        self, name: str, path: str, *, pinned: bool = False, **call: Unpack[CallOptions]
    ) -> AdapterInfo:
        """Loads or replaces an adapter from a folder of the server, or from the hub if the server allows it. The result
        has the report of the load."""
        return await self._ask(calls.load_adapter(name, path, pinned), call)

    async def upload_adapter(
        self, name: str, folder: str | Path, *, pinned: bool = False, **call: Unpack[CallOptions]
    ) -> AdapterInfo:
        """Loads or replaces an adapter from a folder of this machine, by sending its files: those of the folder, or of
        its only checkpoint-N. Raises OSError if the configuration or the weights are missing."""
        return await self._ask(await asyncio.to_thread(calls.upload_adapter, name, folder, pinned), call)

    async def inspect_adapter(self, path: str, **call: Unpack[CallOptions]) -> AdapterReport:
        """Reports the result of loading a folder of the server, without loading it."""
        return await self._ask(calls.inspect_adapter(path), call)

    async def activate_adapter(self, name: str, version: int, **call: Unpack[CallOptions]) -> AdapterInfo:
        """Makes a name mean a version that the server keeps, such as the one before."""
        return await self._ask(calls.activate_adapter(name, version), call)

    async def warm_adapter(self, name: str, **call: Unpack[CallOptions]) -> AdapterInfo:
        """Starts to copy an adapter into the engine's memory, where it may be evicted again."""
        return await self._ask(calls.warm_adapter(name), call)

    async def unload_adapter(self, name: str, *, abort: bool = False, **call: Unpack[CallOptions]) -> AdapterInfo:
        """Unloads an adapter, or with "name@2" one version. Returns when the requests that use it are finished, or
        aborted."""
        return await self._ask(calls.unload_adapter(name, abort), call)

    async def pin_adapter(self, name: str, pinned: bool = True, **call: Unpack[CallOptions]) -> AdapterInfo:
        """Pins an adapter in the engine's memory, or ends its pin."""
        return await self._ask(calls.pin_adapter(name, pinned), call)

    async def get_adapter(self, name: str, **call: Unpack[CallOptions]) -> AdapterInfo:
        """Returns one adapter."""
        return await self._ask(calls.get_adapter(name), call)

    async def list_adapters(self, **call: Unpack[CallOptions]) -> list[AdapterInfo]:
        """Returns the active version of every name, by name."""
        return await self._ask(calls.list_adapters(), call)

    def watch_adapters(self, **call: Unpack[CallOptions]) -> AsyncResults[AdapterSnapshot | AdapterEvent]:
        """Yields a snapshot, then events, until it is cancelled. The client's timeout does not end it."""
        ask = calls.watch_adapters()
        return AsyncResults(self._wire.send(ask, call), ask.read)

    async def info(self, **call: Unpack[CallOptions]) -> EngineInfo:
        """Returns facts about the engine and its load."""
        return await self._ask(calls.info(), call)

    def watch_load(
        self, most_per_second: float | None = None, **call: Unpack[CallOptions]
    ) -> AsyncResults[LoadSnapshot]:
        """Yields the server's load whenever it has changed, until it is cancelled. The client's timeout does not end
        it."""
        ask = calls.watch_load(most_per_second)
        return AsyncResults(self._wire.send(ask, call), ask.read)

    async def abort(self, *request_ids: str, **call: Unpack[CallOptions]) -> None:
        """Ends requests by `PromptInfo.request_id`. Unknown ids and those of finished requests are allowed."""
        await self._ask(calls.abort(request_ids), call)

    async def _ask(self, ask: Ask[T], call: CallOptions) -> T:
        return ask.read(await self._wire.send(ask, call))

    async def close(self) -> None:
        if self._wire.is_here:
            await self._wire.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
