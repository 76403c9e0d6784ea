"""AsyncLLM: the engine in a child process, for asyncio. Outlives its engine: restarts it and loads the adapters again.

Owns the requests that are read, and whether new ones are taken. An EngineSupervisor keeps the process alive, and
AsyncAdapters has the adapters. Computes nothing and imports no torch.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from blora.adapters import AdapterReport
from blora.scheduler import FinishReason, RequestOutputKind, SamplingParams

from .adapter_store.lifecycle import AdapterSources, AsyncAdapters
from .adapter_store.loader_client import LoaderClient
from .adapter_store.upload import UploadedFile
from .errors import EngineStartError, EngineUnavailable, InvalidRequest
from .front_end.adapter_choice import Adapter
from .front_end.calls import Call, Prompt, pair_up
from .front_end.engine_info import engine_info
from .front_end.front_end import Checked, FrontEnd, Prepared
from .front_end.generation_config import load_generation_defaults
from .front_end.output_processor import UserRequest
from .ipc.channel import Child
from .ipc.engine_connection import EngineConnection
from .ipc.engine_supervisor import EngineSupervisor
from .ipc.messages import AddRequest, FinishRequests, FromEngine, GetState, StateReply, Updates
from .ipc.sealed_memory import raise_descriptor_limit
from .model.targets import adapter_targets
from .model_files.hub import resolve_model
from .model_files.read_config import load_model_config
from .options import adapter_paths, checked_folder, engine_config
from .outputs import AdapterEvent, AdapterInfo, AdapterSnapshot, EngineInfo, RequestOutput
from .text.tokenizer import Message, Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Reader:
    """One user's request being read: what to wake when it grew, which the rows of a stream share."""

    user: UserRequest
    grown: asyncio.Event


class AsyncLLM:
    """vLLM's AsyncLLM in shape. Use as `async with AsyncLLM(model) as llm`, or call start() and shutdown().

    adapters: name -> PEFT folder or hub id, loaded at start. adapter_roots: folders that adapters loaded later must lie
    in; None allows any, and hub ids; adapter_hub allows these beside roots. adapter_upload_bytes: of an uploaded one,
    at most; 0 takes none. adapter_watch: a folder each of whose subfolders is loaded under its name, again when it
    changes, and unloaded when it goes; looked into every adapter_watch_interval seconds. Other options are those of
    EngineConfig.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapters: Mapping[str, str | Path] | None = None,
        adapter_roots: Sequence[str | Path] | None = None,
        adapter_hub: bool = False,
        adapter_upload_bytes: int = 0,
        adapter_watch: str | Path | None = None,
        adapter_watch_interval: float = 2.0,
        **options: Any,
    ) -> None:
        self._config = engine_config(model, options)
        self._start_adapters = adapter_paths(adapters)
        roots = None if adapter_roots is None else [checked_folder("adapter_roots", root) for root in adapter_roots]
        watched = None if adapter_watch is None else checked_folder("adapter_watch", adapter_watch)
        self._sources = AdapterSources(roots, adapter_hub, adapter_upload_bytes, watched, adapter_watch_interval)
        self._connection = EngineConnection()
        self._supervisor = EngineSupervisor(
            self._connection,
            self._config,
            on_running=self._tell_serving,
            on_updates=self._take_updates,
            on_lost=self._lose_engine,
            equip=self._equip_engine,
        )
        self._front_end_or_none: FrontEnd | None = None  # until start() has met the engine
        self._adapters_or_none: AsyncAdapters | None = None  # likewise
        self._is_started = False
        self._is_shut_down = False
        self._is_draining = False
        self._on_serving_change: list[Callable[[bool], None]] = []
        self._readers: dict[UserRequest, _Reader] = {}
        self._loading = asyncio.Lock()
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
        if self._is_shut_down or self._connection.is_open:
            raise EngineStartError("an AsyncLLM is started once; make another")
        model = resolve_model(self._config.model, self._config.revision)
        targets = adapter_targets(load_model_config(model))
        tokenizer = load_tokenizer(model)
        try:
            raise_descriptor_limit()
            ready = await self._supervisor.start(model)
            if self._is_draining:
                raise EngineUnavailable("the engine was shut down while it started")
            defaults = load_generation_defaults(model, tokenizer.eos_token_id, self._config.generation_config)
            front_end = FrontEnd(tokenizer, defaults, ready.facts, self._config)
            self._front_end_or_none = front_end
            self._ready = ready
            adapters = self._adapters_or_none = AsyncAdapters(
                front_end.adapters,
                front_end.ledger,
                self._connection,
                lambda: LoaderClient(model, targets, ready),
                self._sources,
                self._check_can_begin,
                self._abort_users,
            )
            self._supervisor.supervise()
            for name, path in self._start_adapters.items():
                await adapters.load_from_anywhere(name, path)
            adapters.follow_folder()
            self._is_started = True
            self._tell_serving()
        except BaseException:
            await self.shutdown()
            raise

    def _lose_engine(self) -> None:
        self._tell_serving()
        for reader in list(self._readers.values()):
            self._front_end.outputs.remove(reader.user)
            reader.grown.set()
        self._adapters.lose_engine()

    async def _equip_engine(self, engine: Child[FromEngine]) -> None:
        await self._adapters.give_all(engine)

    async def drain(self) -> None:
        """Refuses new requests with EngineUnavailable and waits until those that run are finished. Raises
        EngineUnavailable, and changes nothing, before start() has come to its end."""
        if not self._is_started:
            raise self._connection.unavailable()
        self._is_draining = True
        self._tell_serving()
        await self._idle.wait()

    async def shutdown(self) -> None:
        """Ends the child processes; requests that still run are aborted. Idempotent."""
        self._is_draining = self._is_shut_down = True
        adapters = self._adapters_or_none
        if adapters is not None:
            adapters.wake_watchers()
            await adapters.stop_following()
        for reader in list(self._readers.values()):
            self._front_end.outputs.fail(reader.user, FinishReason.ABORT)
            reader.grown.set()
        await self._supervisor.stop()
        if adapters is not None:
            await adapters.close()

    @property
    def is_serving(self) -> bool:
        return self._is_started and self._connection.is_open and not self._is_draining

    def on_serving_change(self, callback: Callable[[bool], None]) -> None:
        """Calls back, in the event loop, when is_serving may have changed."""
        self._on_serving_change.append(callback)

    def _tell_serving(self) -> None:
        for callback in self._on_serving_change:
            callback(self.is_serving)
        if self._adapters_or_none is not None:
            self._adapters_or_none.wake_watchers()

    @property
    def _front_end(self) -> FrontEnd:
        if self._front_end_or_none is None:
            raise self._connection.unavailable()
        return self._front_end_or_none

    @property
    def _adapters(self) -> AsyncAdapters:
        if self._adapters_or_none is None:
            raise self._connection.unavailable()
        return self._adapters_or_none

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
        to scales, is their sum. Raises at the first iteration, before anything is allocated: InvalidRequest,
        AdapterNotFound, AdapterRejected, QueueFull, EngineUnavailable. Later it raises AdapterRejected for an adapter
        that had to be read again and is no longer what was loaded, and EngineUnavailable when the engine dies.
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
        prepared = await self._begin(calls, label)
        grown = asyncio.Event()
        readers = [_Reader(entry.user, grown) for entry in prepared]
        for reader in readers:
            self._readers[reader.user] = reader
            self._idle.clear()
            reader.user.output_kind = kind or reader.user.output_kind
        texts = self._front_end.outputs
        unfinished = {str(index): reader.user for index, reader in enumerate(readers)}
        submission: asyncio.Task[None] | None = None
        try:
            submission = self._submit(prepared, grown)
            while unfinished:
                await grown.wait()
                grown.clear()
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
                if submission is not None and submission.done():
                    submission.result()
        finally:
            if submission is not None:
                submission.cancel()
            for reader in readers:
                self._end(reader)

    async def _begin(self, calls: Sequence[Call], label: str | None) -> list[Prepared]:
        """Checks and accepts."""
        self._check_can_begin()
        self._check_label(label)
        checked = [self._front_end.check(call) for call in calls]
        self._front_end.check_room(checked)
        if self._front_end.adapters_to_load(checked):
            await self._load_missing(checked)
            self._check_can_begin()  # much may have happened meanwhile
            self._check_label(label)
            checked = [self._front_end.check_again(call) for call in checked]
        prepared = [self._front_end.prepare(call, label) for call in checked]
        self._front_end.accept(prepared)
        return prepared

    def _submit(self, prepared: Sequence[Prepared], grown: asyncio.Event) -> "asyncio.Task[None] | None":
        """Gives accepted requests to the engine: at once, or in a task when images of their adapters have been read
        again."""
        digests = {digest for entry in prepared for _, digest in entry.user.adapters}
        if not self._adapters.is_missing(digests):
            self._send(prepared)
            return None
        submission = asyncio.create_task(self._send_when_read(prepared, digests))
        submission.add_done_callback(partial(_wake, grown))
        return submission

    async def _send_when_read(self, prepared: Sequence[Prepared], digests: Iterable[str]) -> None:
        await self._adapters.bring_back(digests)
        self._send(prepared)

    def _send(self, prepared: Sequence[Prepared]) -> None:
        for entry in prepared:
            if self._front_end.outputs.is_known(entry.user):  # it may have ended while its adapter was read
                for request in entry.requests:
                    self._connection.send(AddRequest.of(request))

    async def _load_missing(self, calls: Sequence[Checked]) -> None:
        """vLLM's way: a path comes with the request. Calls that come together load an adapter once."""
        async with self._loading:
            for request in self._front_end.adapters_to_load(calls):
                await self.load_adapter(request.lora_name, request.lora_path)

    def _check_can_begin(self) -> None:
        self._connection.check_open()
        if self._is_draining:
            raise EngineUnavailable("the engine is shutting down")

    def _check_label(self, label: str | None) -> None:
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
        """Ends samples in the engine; one that is dead has forgotten them already. Then what they alone used may go."""
        if sample_ids:
            try:
                self._connection.send(FinishRequests(list(sample_ids)))
            except EngineUnavailable:
                logger.debug("the engine is gone, and its requests with it")
        self._adapters.settle()

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

    def _abort_users(self, name: str, digests: Collection[str]) -> None:
        self._abort(self._front_end.outputs.users_of(name, digests))

    def _take_updates(self, updates: Updates) -> None:
        grown, to_finish = self._front_end.outputs.process(updates.rows)
        self._finish(to_finish)
        for user in grown:
            self._readers[user].grown.set()
        for digest in updates.unloaded:
            self._adapters.forget(digest)
        if updates.residency:
            self._adapters.note_residency(updates.residency)

    # Adapters.

    async def load_adapter(self, name: str, path: str | Path, *, pinned: bool = False) -> AdapterInfo:
        """Loads a PEFT folder as the active version of a name while requests run, which finish on what they began with.
        The least recently active versions go when there are more than `max_adapter_versions`. The info that comes back
        has a report.

        Raises AdapterRejected with everything that does not fit, AdapterTooLarge, InvalidRequest, EngineUnavailable.
        Where there is no room now to pin it, AdapterTooLarge too: it is loaded all the same, and not pinned.
        """
        return await self._adapters.load(name, path, pinned=pinned)

    async def upload_adapter(
        self, name: str, files: Sequence[UploadedFile], chunks: AsyncIterable[bytes], *, pinned: bool = False
    ) -> AdapterInfo:
        """`load_adapter` from bytes: those of all files, one after another, in chunks of any size.

        Raises as `load_adapter` does, InvalidRequest for a bad list of files, AdapterRejected for bytes that are not
        what was announced, QueueFull when too many upload at once.
        """
        return await self._adapters.upload(name, files, chunks, pinned=pinned)

    async def inspect_adapter(self, path: str | Path) -> AdapterReport:
        """What loading a PEFT folder would come to; loads nothing. What is wrong with it stands in the report. Raises
        InvalidRequest, EngineUnavailable, AdapterRejected where nothing may be loaded."""
        return await self._adapters.inspect(path)

    async def activate_adapter(self, name: str, version: int) -> AdapterInfo:
        """Makes a name mean a version that is kept, such as the one before. Running requests finish on what they began
        with. Raises AdapterNotFound, AdapterRejected for one that had to be read again and is no longer what was
        loaded."""
        return await self._adapters.activate(name, version)

    async def warm_adapter(self, name: str) -> AdapterInfo:
        """Starts to make an adapter resident in the arena, where it may be evicted again. Raises AdapterTooLarge when
        running requests leave no room now."""
        return await self._adapters.warm(name)

    async def unload_adapter(self, name: str, *, abort: bool = False) -> AdapterInfo:
        """Refuses new requests for the name at once; returns when the running ones are finished, or aborted, and it is
        freed. "name@2" takes one version away; the active one of several is not, which raises InvalidRequest."""
        return await self._adapters.unload(name, abort=abort)

    async def pin_adapter(self, name: str, pinned: bool = True) -> AdapterInfo:
        """Keeps an adapter resident in the arena. Raises AdapterTooLarge when running requests leave no room now."""
        return await self._adapters.pin(name, pinned)

    async def get_adapter(self, name: str) -> AdapterInfo:
        """name: "name", which tells of its active version, or "name@2". Raises AdapterNotFound."""
        return await self._adapters.get(name)

    async def list_adapters(self) -> list[AdapterInfo]:
        return await self._adapters.all()

    async def watch_adapters(self) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]:
        """First everything that is loaded, then what happens to it. Whoever reads so slowly that events are kept no
        more gets everything again. Raises EngineUnavailable when the engine ends or drains."""
        async with aclosing(self._adapters.watch()) as news:
            async for piece in news:
                yield piece

    # Facts.

    def check_integrity(self) -> None:
        """Raises RuntimeError when an adapter's image in host memory, or a reference to it, has no owner."""
        uses = [digest for user in self._front_end.outputs.users() for _, digest in user.adapters]
        self._adapters.check_integrity(uses)

    def check_idle(self) -> None:
        """Raises RuntimeError unless, with no request unfinished, nothing of one is left and no adapter is on its way
        in or out."""
        self.check_integrity()
        num_left = len(self._readers) + self._front_end.outputs.num_unfinished
        if num_left or not self._idle.is_set():
            raise RuntimeError(f"idle, but {num_left} requests and samples are left")
        self._adapters.check_idle()

    async def get_info(self) -> EngineInfo:
        """Facts of the engine, its load, and its counts. Raises EngineUnavailable."""
        state: StateReply = await self._connection.call(lambda call_id: GetState(call_id, []))
        return engine_info(self._config, self._ready.dtype, self._ready.page_bytes, state.load, self._front_end)

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
        return self._front_end.tokenizer_of(lora_request)

    def get_default_sampling_params(self) -> SamplingParams:
        return self._front_end.defaults.sampling


def _wake(grown: asyncio.Event, submission: "asyncio.Task[None]") -> None:
    """For whoever reads to see what came of it; that it is looked at here keeps asyncio from reporting what nobody is
    left to see."""
    if not submission.cancelled():
        submission.exception()
    grown.set()
