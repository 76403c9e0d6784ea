"""AsyncLLM: the engine in a child process, for asyncio. Outlives its engine: restarts it and loads the adapters again.

Owns the child processes and the sealed images of loaded adapters. Computes nothing and imports no torch.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from blora.adapters import AdapterNotFound, AdapterRejected, AdapterReport, AdapterTooLarge, ImageTable
from blora.scheduler import FinishReason, RequestOutputKind, SamplingParams

from .adapter_catalog import AdapterCatalog
from .adapter_reader import AdapterReader, PackedAdapter
from .adapter_upload import IncomingAdapter, UploadedFile
from .batch import Call, Prompt, pair_up
from .channel import ChannelClosed, Child, start_child
from .composition import Adapter, read_adapters
from .config import EngineConfig
from .errors import EngineStartError, EngineUnavailable, InvalidRequest, QueueFull
from .folder_follower import FolderFollower
from .frames import (
    AddRequest,
    FinishRequests,
    FromEngine,
    GetState,
    LoadAdapter,
    PinAdapter,
    PinReply,
    ReadAdapter,
    Ready,
    Start,
    StartFailed,
    StateReply,
    UnloadAdapter,
    Updates,
    WarmAdapter,
)
from .front_end import Checked, FrontEnd
from .generation_config import load_generation_defaults
from .model.config import load_model_config
from .model.hub import resolve_model
from .model.targets import adapter_targets
from .options import adapter_paths, engine_config
from .output_processor import UserRequest
from .outputs import AdapterEvent, AdapterInfo, AdapterSnapshot, AdapterState, EngineInfo, RequestOutput
from .sealed_memory import raise_descriptor_limit
from .tokenizer import Message, Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

MAX_UPLOADS = 4  # at once: each may hold adapter_upload_bytes of memory
UPLOAD_TIMEOUT = 600.0  # seconds
ENGINE_GRACE = 5.0  # seconds for a child to end by itself
RESTART_DELAYS = (0.0, 0.5, 2.0, 10.0)  # seconds before each attempt; the last one repeats


@dataclass(frozen=True, slots=True)
class _Reader:
    """One user's request being read: what to wake when it grew, which the rows of a stream share."""

    user: UserRequest
    grown: asyncio.Event


class AsyncLLM:
    """vLLM's AsyncLLM in shape. Use as `async with AsyncLLM(model) as llm`, or call start() and shutdown().

    adapters: name -> PEFT folder or hub id, loaded at start. adapter_roots: folders that adapters loaded later must lie
    in; None allows any. adapter_upload_bytes: of an uploaded one, at most; 0 takes none. adapter_watch:
    a folder each of whose subfolders is loaded under its name, again when it changes, and unloaded when it goes; looked
    into every adapter_watch_interval seconds. Other options are those of EngineConfig.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapters: Mapping[str, str | Path] | None = None,
        adapter_roots: Sequence[str | Path] | None = None,
        adapter_upload_bytes: int = 0,
        adapter_watch: str | Path | None = None,
        adapter_watch_interval: float = 2.0,
        **options: Any,
    ) -> None:
        self._config = engine_config(model, options)
        self._start_adapters = adapter_paths(adapters)
        self._adapter_roots = (
            None if adapter_roots is None else [_checked_folder("adapter_roots", root) for root in adapter_roots]
        )
        self._adapter_upload_bytes = adapter_upload_bytes
        self._watched = None if adapter_watch is None else _checked_folder("adapter_watch", adapter_watch)
        self._watch_interval = adapter_watch_interval
        self._follower: FolderFollower | None = None
        self._num_uploads = 0
        self._engine: Child[FromEngine] | None = None
        self._loader = AdapterReader()
        self._front_end_or_none: FrontEnd | None = None  # until start() has met the engine
        self._is_started = False
        self._is_shut_down = False
        self._supervisor: asyncio.Task[None] | None = None
        self._is_draining = False
        self._on_serving_change: list[Callable[[bool], None]] = []
        self._readers: dict[UserRequest, _Reader] = {}
        self._images: dict[str, int] = {}  # digest -> descriptor of the sealed image
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._num_calls = 0
        self._unloads: dict[str, asyncio.Future[None]] = {}  # by digest
        self._loading = asyncio.Lock()
        self._changed = asyncio.Event()  # set, and another put in its place, when names or serving change
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> "AsyncLLM":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    # Life.

    async def start(self) -> None:
        """Loads the model and the start-up adapters, once. Raises EngineStartError, AdapterRejected, ValueError."""
        if self._is_shut_down or self._engine is not None:
            raise EngineStartError("an AsyncLLM is started once; make another")
        self._model = resolve_model(self._config.model, self._config.revision)
        self._targets = list(adapter_targets(load_model_config(self._model)))
        tokenizer = load_tokenizer(self._model)
        try:
            raise_descriptor_limit()
            config = self._config
            self._engine, ready = await self._start_engine(config)
            if self._is_draining:
                raise EngineUnavailable("the engine was shut down while it started")
            defaults = load_generation_defaults(self._model, tokenizer.eos_token_id, config.generation_config)
            front_end = FrontEnd(tokenizer, defaults, ready.facts, config)
            self._front_end_or_none = front_end
            self._ready = ready
            self._supervisor = asyncio.create_task(self._supervise())
            self._supervisor.add_done_callback(_log_failure)
            for name, path in self._start_adapters.items():
                await self._load(name, path, roots=None)
            if self._watched is not None:
                self._follow(self._watched)
            self._is_started = True
            self._tell_serving()
        except BaseException:
            await self.shutdown()
            raise

    async def _start_engine(self, config: EngineConfig) -> tuple[Child[FromEngine], Ready]:
        engine: Child[FromEngine] = await start_child("blora.engine.process", FromEngine)
        try:
            engine.send(Start(config, str(self._model)))
            answer = await engine.receive()
        except ChannelClosed:
            answer = StartFailed("the engine process ended while it started")
        except BaseException:
            await engine.stop(0)
            raise
        if not isinstance(answer, Ready):
            await engine.stop(0)
            raise EngineStartError(answer.reason if isinstance(answer, StartFailed) else "the engine did not answer")
        return engine, answer

    async def _supervise(self) -> None:
        """Reads the engine's messages; when it dies, fails what ran and starts another."""
        while True:
            self._tell_serving()
            await self._read_engine()
            logger.error("the engine process ended unexpectedly; restarting it")
            await self._bury_engine()
            for attempt in count():
                await asyncio.sleep(RESTART_DELAYS[min(attempt, len(RESTART_DELAYS) - 1)])
                try:
                    self._engine = await self._revive_engine()
                    break
                except (EngineStartError, ChannelClosed, OSError) as error:
                    logger.error("the engine cannot be restarted: %s", error or type(error).__name__)

    async def _read_engine(self) -> None:
        engine = self._require_engine()
        while True:
            try:
                message = await engine.receive()
            except ChannelClosed:
                return
            match message:
                case Updates(rows, unloaded):
                    self._take_updates(rows, unloaded)
                case PinReply(call_id) | StateReply(call_id):
                    call = self._calls.pop(call_id, None)
                    if call is not None and not call.done():
                        call.set_result(message)
                case _:
                    logger.error("unexpected message from the engine: %s", type(message).__name__)

    async def _bury_engine(self) -> None:
        engine, self._engine = self._engine, None
        self._tell_serving()
        self._fail_calls("the engine ended unexpectedly")
        for reader in list(self._readers.values()):
            self._front_end.outputs.remove(reader.user)
            reader.grown.set()
        self._forget_unpublished()
        if engine is not None:
            await engine.stop(0)

    def _fail_calls(self, reason: str) -> None:
        for call in self._calls.values():
            if not call.done():
                call.set_exception(EngineUnavailable(reason))
        self._calls.clear()

    def _forget_unpublished(self) -> None:
        """An engine that is gone has freed everything; what no name means is not loaded again."""
        for digest in [digest for digest in self._images if not self._adapters.is_published(digest)]:
            self._forget(digest)

    async def _revive_engine(self) -> Child[FromEngine]:
        """Another engine of the same size, because requests are checked against it, with all adapters."""
        num_bytes = self._ready.facts.num_pages * self._ready.page_bytes
        engine, _ = await self._start_engine(replace(self._config, memory=num_bytes))
        try:
            self._forget_unpublished()
            for digest, descriptor in list(self._images.items()):
                await engine.send_with(LoadAdapter(self._adapters.table_of(digest)), descriptor)
            for digest in filter(self._adapters.is_pinned, self._images):
                engine.send(PinAdapter(self._next_call(), digest, True))
        except BaseException:
            await engine.stop(0)
            raise
        return engine

    async def drain(self) -> None:
        """Refuses new requests with EngineUnavailable and waits until those that run are finished."""
        self._is_draining = True
        self._tell_serving()
        await self._idle.wait()

    async def shutdown(self) -> None:
        """Ends the child processes; requests that still run are aborted. Idempotent."""
        self._is_draining = self._is_shut_down = True
        self._tell_watchers()
        if self._follower is not None:
            await self._follower.stop()
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        for reader in list(self._readers.values()):
            self._front_end.outputs.fail(reader.user, FinishReason.ABORT)
            reader.grown.set()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.stop(ENGINE_GRACE)
        self._fail_calls("the engine was shut down")
        for unload in self._unloads.values():
            if not unload.done():
                unload.set_result(None)  # what was to be freed is
        await self._loader.close()
        for descriptor in self._images.values():
            os.close(descriptor)
        self._images.clear()

    @property
    def is_serving(self) -> bool:
        return self._is_started and self._engine is not None and not self._is_draining

    def on_serving_change(self, callback: Callable[[bool], None]) -> None:
        """Calls back, in the event loop, when is_serving may have changed."""
        self._on_serving_change.append(callback)

    def _tell_serving(self) -> None:
        for callback in self._on_serving_change:
            callback(self.is_serving)
        self._tell_watchers()

    def _require_engine(self) -> Child[FromEngine]:
        if self._engine is None:
            raise EngineUnavailable(self._why_gone())
        return self._engine

    def _why_gone(self) -> str:
        if self._is_shut_down:
            return "the engine was shut down"
        return "the engine is being restarted" if self._is_started else "the engine is not started: await start() first"

    @property
    def _front_end(self) -> FrontEnd:
        if self._front_end_or_none is None:
            raise EngineUnavailable(self._why_gone())
        return self._front_end_or_none

    @property
    def _adapters(self) -> AdapterCatalog:
        return self._front_end.adapters

    def _send(self, message: Any) -> None:
        try:
            self._require_engine().send(message)
        except ChannelClosed:
            raise EngineUnavailable("the engine ended unexpectedly") from None

    # Requests.

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: Adapter = None,
        priority: int = 0,
        tenant: str = "",
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generates for one prompt, yielding as sampling_params.output_kind says. Closing the generator aborts.

        A LoRARequest loads what is not loaded once nothing else is wrong; a sequence of adapters, or a mapping of names
        to scales, is their sum. Raises at the first iteration, before
        anything is allocated: InvalidRequest, AdapterNotFound, AdapterRejected, QueueFull, EngineUnavailable. Raises
        EngineUnavailable later when the engine dies.
        """
        call = Call(prompt, sampling_params, lora_request, priority, tenant)
        async with aclosing(self._run([call], request_id)) as news:
            async for outputs in news:
                for output in outputs:
                    yield output

    async def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: Adapter | Sequence[Adapter] = None,
        priority: Sequence[int] | None = None,
        tenant: str | Sequence[str] = "",
    ) -> AsyncGenerator[list[RequestOutput], None]:
        """Yields what is new of every row that grew; request_id is the row's index in prompts. Lists pair one to one
        with prompts. All are accepted or none; raises as `generate` does. Closing the generator aborts.
        """
        calls = pair_up(prompts, sampling_params, lora_request, priority, tenant)
        async with aclosing(self._run(calls, None, RequestOutputKind.DELTA)) as news:
            async for outputs in news:
                yield outputs

    async def _run(
        self, calls: Sequence[Call], label: str | None, kind: RequestOutputKind | None = None
    ) -> AsyncGenerator[list[RequestOutput], None]:
        """Rows that grow together. With a kind they are shown so, under their index."""
        readers = await self._begin(calls, label, kind)
        texts = self._front_end.outputs
        unfinished = {str(index): reader.user for index, reader in enumerate(readers)}
        try:
            while unfinished:
                await readers[0].grown.wait()
                readers[0].grown.clear()
                news = {index: texts.take(user) for index, user in unfinished.items()}
                unfinished = {index: user for index, user in unfinished.items() if not user.is_finished}
                is_lost = not all(texts.is_known(user) for user in unfinished.values())
                outputs = [
                    output if kind is None else replace(output, request_id=index)
                    for index, output in news.items()
                    if output is not None
                ]
                if outputs:
                    yield outputs
                if is_lost:
                    raise EngineUnavailable("the engine ended unexpectedly while it computed this request")
        finally:
            for reader in readers:
                self._end(reader)

    async def _begin(self, calls: Sequence[Call], label: str | None, kind: RequestOutputKind | None) -> list[_Reader]:
        self._check_can_begin(label)
        checked = [self._front_end.check(call) for call in calls]
        self._front_end.check_room(checked)
        await self._load_missing(checked)
        self._check_can_begin(label)  # much may have happened meanwhile
        prepared = [self._front_end.prepare(call, label) for call in checked]
        self._front_end.accept(prepared)
        grown = asyncio.Event()
        readers = [_Reader(entry.user, grown) for entry in prepared]
        self._readers |= {reader.user: reader for reader in readers}
        try:
            for entry in prepared:
                self._idle.clear()
                entry.user.output_kind = kind or entry.user.output_kind
                for request in entry.requests:
                    self._send(AddRequest.of(request))
        except BaseException:
            for reader in readers:
                self._end(reader)
            raise
        return readers

    def _check_can_begin(self, label: str | None) -> None:
        self._require_engine()
        if self._is_draining:
            raise EngineUnavailable("the engine is shutting down")
        if label is not None and not isinstance(label, str):
            raise InvalidRequest("request_id", f"{label!r:.140} is not a text")
        if label is not None and any(user.request_id == label for user in self._readers):
            raise InvalidRequest("request_id", f"{label!r:.140} is the id of an unfinished request")

    def _end(self, reader: _Reader) -> None:
        self._finish(self._front_end.outputs.remove(reader.user))
        self._readers.pop(reader.user, None)
        if not self._readers:
            self._idle.set()

    def _finish(self, sample_ids: Sequence[int]) -> None:
        """Ends samples in the engine; one that is dead has forgotten them already."""
        if sample_ids and self._engine is not None:
            try:
                self._engine.send(FinishRequests(list(sample_ids)))
            except ChannelClosed:
                logger.debug("the engine is gone, and its requests with it")

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Ends requests by their ids; unknown and finished ones are fine."""
        if not isinstance(request_id, Iterable):
            raise InvalidRequest("request_id", f"{request_id!r:.80} is neither an id nor ids")
        labels = {request_id} if isinstance(request_id, str) else set(request_id)
        self._abort([user for user in self._readers if user.request_id in labels])

    def _abort(self, users: Iterable[UserRequest]) -> None:
        for user in users:
            self._finish(self._front_end.outputs.fail(user, FinishReason.ABORT))
            self._readers[user].grown.set()

    def _take_updates(self, rows: Sequence[Any], unloaded: Sequence[str]) -> None:
        grown, to_finish = self._front_end.outputs.process(rows)
        self._finish(to_finish)
        for user in grown:
            self._readers[user].grown.set()
        for digest in unloaded:
            self._forget(digest)

    # Adapters.

    async def load_adapter(self, name: str, path: str | Path, *, pinned: bool = False) -> AdapterInfo:
        """Loads a PEFT folder as the active version of a name while requests run, which finish on what they began with.
        The least recently active versions go when there are more than `max_adapter_versions`. The info that comes back
        has a report.

        Raises AdapterRejected with everything that does not fit, AdapterTooLarge, InvalidRequest, EngineUnavailable.
        """
        report = await self._load(name, path, self._allowed_roots(path))
        info = await (self.pin_adapter(name) if pinned else self.get_adapter(name))
        return replace(info, report=report)

    async def upload_adapter(
        self, name: str, files: Sequence[UploadedFile], chunks: AsyncIterable[bytes], *, pinned: bool = False
    ) -> AdapterInfo:
        """`load_adapter` from bytes: those of all files, one after another, in chunks of any size.

        Raises as `load_adapter` does, InvalidRequest for a bad list of files, AdapterRejected for bytes that are not
        what was announced, QueueFull when too many upload at once.
        """
        self._adapters.check_name(name)
        self._check_can_begin(None)
        if not self._adapter_upload_bytes:
            raise AdapterRejected(name, ["no uploads are taken: start with --adapter-upload-bytes"])
        if self._num_uploads >= MAX_UPLOADS:
            raise QueueFull(f"{self._num_uploads} adapters are being uploaded, at most {MAX_UPLOADS}")
        incoming = IncomingAdapter(files, self._adapter_upload_bytes)
        self._num_uploads += 1
        try:
            await self._receive(incoming, chunks)
            order = self._read_order(f"upload:{name}", None)
            report = await self._take_in(name, order.path, await self._loader.read_uploaded(order, incoming))
        finally:
            self._num_uploads -= 1
            incoming.close()
        info = await (self.pin_adapter(name) if pinned else self.get_adapter(name))
        return replace(info, report=report)

    async def _receive(self, incoming: IncomingAdapter, chunks: AsyncIterable[bytes]) -> None:
        try:
            async with asyncio.timeout(UPLOAD_TIMEOUT):
                async for chunk in chunks:
                    incoming.add(chunk)
        except TimeoutError:
            raise AdapterRejected("upload", [f"it took more than {UPLOAD_TIMEOUT:g} s"]) from None
        incoming.finish()

    async def inspect_adapter(self, path: str | Path) -> AdapterReport:
        """What loading a PEFT folder would come to; loads nothing. What is wrong with it stands in the report. Raises
        InvalidRequest, EngineUnavailable, AdapterRejected where nothing may be loaded."""
        order = self._read_order(path, self._allowed_roots(path))
        return self._adapters.check_report(await self._loader.inspect(order))

    def _allowed_roots(self, path: str | Path) -> Sequence[str] | None:
        if self._adapter_roots is not None and not self._adapter_roots:
            raise AdapterRejected(str(path), ["no folder is allowed to load from: start with --adapter-root"])
        return self._adapter_roots

    def _read_order(self, path: str | Path, roots: Sequence[str] | None) -> ReadAdapter:
        self._adapters.check_path(path)
        self._require_engine()
        return ReadAdapter(
            path=str(path),
            roots=None if roots is None else list(roots),
            targets=self._targets,
            dtype=self._ready.dtype,
            page_bytes=self._ready.page_bytes,
            model=str(self._model),
        )

    async def _load(self, name: str, location: str | Path, roots: Sequence[str] | None) -> AdapterReport:
        self._adapters.check_name(name)
        order = self._read_order(location, roots)
        return await self._take_in(name, order.path, await self._loader.read(order))

    async def _take_in(self, name: str, path: str, packed: PackedAdapter) -> AdapterReport:
        table, descriptor = packed.table, packed.descriptor
        try:
            self._adapters.check_size(path, table.num_pages)
            table = self._adapters.add_text(path, table)
            await self._require_engine().send_with(LoadAdapter(table), descriptor)
        except BaseException as error:
            os.close(descriptor)
            self._adapters.forget(table.digest)
            if isinstance(error, ChannelClosed):
                raise EngineUnavailable("the engine ended unexpectedly") from None
            raise
        self._keep_image(table, descriptor)
        self._let_go(self._adapters.publish(name, path, table))
        unload = self._unloads.pop(table.digest, None)
        if unload is not None:
            unload.set_result(None)  # it was on its way out and is wanted again
        return replace(packed.report, warnings=table.warnings, text=table.text)

    def _keep_image(self, table: ImageTable, descriptor: int) -> None:
        known = self._images.pop(table.digest, None)
        if known is not None:
            os.close(known)
        self._images[table.digest] = descriptor

    async def activate_adapter(self, name: str, version: int) -> AdapterInfo:
        """Makes a name mean a version that is kept, such as the one before. Running requests finish on what they began
        with. Raises AdapterNotFound."""
        self._let_go(self._adapters.activate(name, version))
        return await self.get_adapter(name)

    async def warm_adapter(self, name: str) -> AdapterInfo:
        """Starts to make an adapter resident in the arena, where it may be evicted again. Raises AdapterTooLarge when
        running requests leave no room now."""
        digest = self._adapters.resolve(name)
        if not (await self._call(lambda call_id: WarmAdapter(call_id, digest))).is_done:
            raise AdapterTooLarge(f"there is no room now to warm adapter {name!r}")
        return await self.get_adapter(name)

    async def unload_adapter(self, name: str, *, abort: bool = False) -> AdapterInfo:
        """Refuses new requests for the name at once; returns when the running ones are finished, or aborted, and it is
        freed. "name@2" takes one version away; the active one of several is not, which raises InvalidRequest."""
        info = await self.get_adapter(name)
        digests = self._adapters.withdraw(name)
        if abort:
            self._abort(self._front_end.outputs.users_of(info.name, digests))
        loop = asyncio.get_running_loop()
        gone = [digest for digest in digests if not self._adapters.is_published(digest)]
        unloads = [self._unloads.setdefault(digest, loop.create_future()) for digest in gone]
        self._let_go(digests)
        for unload in unloads:
            await asyncio.shield(unload)
        return info

    def _let_go(self, digests: Iterable[str]) -> None:
        """Adapters have lost a name: with the last one they go, with the last pinned one they may be evicted."""
        self._tell_watchers()
        for digest in digests:
            if self._engine is None:
                self._forget(digest)  # an engine that is gone has freed it; the next one is not given it
            elif not self._adapters.is_published(digest):
                self._send(UnloadAdapter(digest))
            elif not self._adapters.is_pinned(digest):
                self._send(PinAdapter(self._next_call(), digest, False))

    def _forget(self, digest: str) -> None:
        """The engine has freed an adapter."""
        unload = self._unloads.pop(digest, None)
        if unload is not None and not unload.done():
            unload.set_result(None)
        if not self._adapters.is_published(digest):
            self._adapters.forget(digest)
            descriptor = self._images.pop(digest, None)
            if descriptor is not None:
                os.close(descriptor)

    async def pin_adapter(self, name: str, pinned: bool = True) -> AdapterInfo:
        """Keeps an adapter resident in the arena. Raises AdapterTooLarge when running requests leave no room now."""
        adapter = self._adapters.named(name)
        name, digest = adapter.reference, adapter.table.digest
        self._adapters.set_pinned(name, pinned)  # at once: requests are checked against it from now on
        if pinned and not (await self._call(lambda call_id: PinAdapter(call_id, digest, True))).is_done:
            with contextlib.suppress(AdapterNotFound):  # it has gone meanwhile, and its pin with it
                self._adapters.set_pinned(name, False)
            raise AdapterTooLarge(f"there is no room now to pin adapter {name!r}")
        if not self._adapters.is_pinned(digest) and self._adapters.is_published(digest):
            self._send(PinAdapter(self._next_call(), digest, False))
        return await self.get_adapter(name)

    async def get_adapter(self, name: str) -> AdapterInfo:
        """name: "name", which tells of its active version, or "name@2". Raises AdapterNotFound."""
        adapter = self._adapters.named(name)
        (state,) = await self._states([adapter.table.digest])
        return self._adapters.describe(adapter, state)

    async def list_adapters(self) -> list[AdapterInfo]:
        adapters = self._adapters.all()
        states = await self._states([adapter.table.digest for adapter in adapters])
        return [self._adapters.describe(adapter, state) for adapter, state in zip(adapters, states, strict=True)]

    async def watch_adapters(self) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]:
        """First everything that is loaded, then what happens to it. Whoever reads so slowly that events are kept no
        more gets everything again. Raises EngineUnavailable when the engine ends or drains."""
        revision: int | None = None
        while True:
            self._check_can_begin(None)
            catalog, changed = self._adapters, self._changed
            events = None if revision is None else catalog.events_after(revision)
            revision = catalog.revision
            if events is None:
                yield AdapterSnapshot(revision, tuple(await self.list_adapters()))
            else:
                for event in events:
                    yield event
            if catalog.revision == revision:
                await changed.wait()

    def _follow(self, folder: str) -> None:
        self._follower = FolderFollower(
            look=lambda: self._loader.look_into(folder),
            load=lambda name: self._load(name, Path(folder) / name, [folder]),
            unload=self.unload_adapter,
        )
        self._follower.start(self._watch_interval)

    def _tell_watchers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _states(self, digests: list[str]) -> list[AdapterState]:
        reply: StateReply = await self._call(lambda call_id: GetState(call_id, digests))
        return reply.adapters

    async def _load_missing(self, calls: Sequence[Checked]) -> None:
        """vLLM's way: a path comes with the request. Those who ask together load it once."""
        if self._front_end.adapters_to_load(calls):
            async with self._loading:
                for request in self._front_end.adapters_to_load(calls):
                    await self.load_adapter(request.lora_name, request.lora_path)

    def _call(self, message: Callable[[int], Any]) -> Awaitable[Any]:
        """Sends a message that the engine answers."""
        call_id = self._next_call()
        self._send(message(call_id))
        call: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = call
        return call

    def _next_call(self) -> int:
        self._num_calls += 1
        return self._num_calls

    # Facts.

    async def get_info(self) -> EngineInfo:
        state: StateReply = await self._call(lambda call_id: GetState(call_id, []))
        facts = self._ready.facts
        return EngineInfo(
            model=self._config.model,
            dtype=self._ready.dtype,
            vocab_size=facts.vocab_size,
            max_model_len=facts.max_model_len,
            block_size=facts.block_size,
            num_pages=facts.num_pages,
            page_bytes=self._ready.page_bytes,
            num_free_pages=state.num_free_pages,
            num_running=state.num_running,
            num_waiting=state.num_waiting,
            version=version("blora"),
            **asdict(state.counts),
        )

    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: Adapter = None,
        priority: int = 0,
        tenant: str = "",
    ) -> AsyncGenerator[RequestOutput, None]:
        """`generate` for a conversation, put into the chat template of its adapter, or of the model."""
        prompt: Prompt = {"messages": messages}
        outputs = self.generate(
            prompt, sampling_params, request_id, lora_request=lora_request, priority=priority, tenant=tenant
        )
        async with aclosing(outputs):
            async for output in outputs:
                yield output

    def get_tokenizer(self, lora_request: Adapter = None) -> Tokenizer:
        """What prompts for these adapters, which have to be loaded, are encoded with."""
        return self._front_end.tokenizer_of(read_adapters(lora_request))

    def get_default_sampling_params(self) -> SamplingParams:
        return self._front_end.defaults.sampling


def _checked_folder(option: str, folder: str | Path) -> str:
    """One that is not there, often a misspelt one, would refuse every load later, or never bring one."""
    if not Path(folder).is_dir():
        raise ValueError(f"{option}: {str(folder)!r:.140} is not a folder")
    return str(Path(folder).resolve())


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.critical("nobody watches over the engine any more", exc_info=task.exception())
