"""AsyncLLM: the engine in a child process, for asyncio. It outlives its engine, restarts it and gives it the adapters.

Owns the phase of its life. An EngineSupervisor keeps the process alive, AsyncAdapters has the adapters, and
AsyncRequests the requests. Computes nothing and imports no torch. It belongs to one event loop of one process; a
method that needs the engine runs `once_started`.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from blora.adapters import AdapterReport
from blora.scheduler import SamplingParams

from .adapter_store.intake import AdapterSources
from .adapter_store.lifecycle import AsyncAdapters
from .adapter_store.loader_client import LoaderClient
from .adapter_store.signers import AdapterSigners
from .adapter_store.upload import UploadedFile
from .arguments.engine_args import EngineArgs, engine_config
from .arguments.unserved import TellsUnserved
from .errors import EngineStartError, EngineUnavailable, InvalidRequest
from .events import tell
from .front_end import output_processor, statistics
from .front_end.adapter_choice import Adapter
from .front_end.calls import (
    Call,
    Conversation,
    Prompt,
    first_deadline,
    first_token_deadline,
    kept,
    kind_of_stream,
    pair_up,
)
from .front_end.engine_info import engine_info
from .front_end.front_end import Checked, FrontEnd
from .front_end.generation_config import load_generation_defaults
from .front_end.load_snapshot import load_snapshot
from .identity.tenant import Tenant
from .ipc.channel import Child, start_child
from .ipc.deadline import Deadline
from .ipc.death import Death
from .ipc.engine_connection import EngineConnection
from .ipc.engine_supervisor import EngineSupervisor
from .ipc.grammar_client import GrammarClient
from .ipc.home_loop import HomeLoop
from .ipc.home_process import HomeProcess
from .ipc.messages import (
    DoneReply,
    FromEngine,
    GetState,
    Ready,
    ResetPrefixCache,
    StateReply,
    Updates,
)
from .ipc.sealed_memory import raise_descriptor_limit
from .ipc.text_client import TextClients
from .model.targets import adapter_targets
from .model_files.hub import resolve_model
from .model_files.read_config import load_model_config
from .options import adapter_paths, checked_folder
from .outputs import (
    AdapterEvent,
    AdapterInfo,
    AdapterSnapshot,
    EngineInfo,
    LoadSnapshot,
    LoRARequest,
    RequestOutput,
    Tokens,
)
from .requests.async_requests import AsyncRequests
from .requests.async_tokens import AsyncTokens
from .requests.load_watch import LoadWatch
from .text.tokenizer import Tokenizer, load_tokenizer
from .text.user_tokenizer import UserTokenizer

logger = logging.getLogger(__name__)
PATIENCE_FOR_INFO = 1.0  # seconds for the engine to answer; in a long step it does so at its end
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


class Phase(Enum):
    """Phases of AsyncLLM's life. While it runs, its engine may be restarted all the same."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"  # requests finish, and no new one begins
    ENDED = "ended"


NEXT_PHASES: Mapping[Phase, frozenset[Phase]] = {
    Phase.NEW: frozenset({Phase.STARTING, Phase.ENDED}),
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.ENDED}),
    Phase.RUNNING: frozenset({Phase.DRAINING, Phase.ENDED}),
    Phase.DRAINING: frozenset({Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of AsyncLLM that are made when the engine has told its facts."""

    ready: Ready
    front_end: FrontEnd
    adapters: AsyncAdapters
    requests: AsyncRequests
    texts: TextClients
    tokens: AsyncTokens
    grammars: GrammarClient


def once_started(
    method: "Callable[Concatenate[AsyncLLM, Parameters], Coroutine[Any, Any, Returned]]",
) -> "Callable[Concatenate[AsyncLLM, Parameters], Coroutine[Any, Any, Returned]]":
    """Makes a method of AsyncLLM wait until the engine has started, and refuse another event loop or process."""

    @wraps(method)
    async def run(self: "AsyncLLM", /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        await self._become_ready()
        return await method(self, *args, **kwargs)

    return run


class AsyncLLM(TellsUnserved):
    """An engine with the methods of vLLM's AsyncLLM. Use `async with AsyncLLM(model) as llm`; or call start(), as the
    first use does by itself, and shutdown().

    It belongs to the event loop that uses it first, and ends with it: use in another event loop raises WrongEventLoop,
    and in a child that was forked WrongProcess. Other threads hand it work by asyncio.run_coroutine_threadsafe.

    model: a Hugging Face folder, a hub id or a .gguf file. adapters: name -> PEFT folder or hub id, loaded at start.
    adapter_roots: folders, one of which has to hold each adapter loaded later; None allows any folder, and hub ids;
    adapter_hub allows hub ids beside the roots. adapter_upload_bytes: the most bytes of an uploaded adapter; 0 takes no
    uploads. adapter_watch: a folder, each subfolder of which is loaded under its own name, again when it changes, and
    unloaded when it goes; adapter_watch_interval: seconds between looks at it. adapter_signers: a file of public keys,
    one of which has to have signed each adapter. Other options are those of EngineConfig.
    """

    _start_child = staticmethod(start_child)  # another one where time is simulated

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
        adapter_signers: str | Path | None = None,
        **options: Any,
    ) -> None:
        self._config = engine_config(model, **options)
        self._start_adapters = adapter_paths(adapters)
        roots = None if adapter_roots is None else [checked_folder("adapter_roots", root) for root in adapter_roots]
        watched = None if adapter_watch is None else checked_folder("adapter_watch", adapter_watch)
        signers = None if adapter_signers is None else AdapterSigners.read(adapter_signers)
        self._sources = AdapterSources(
            roots, adapter_hub, adapter_upload_bytes, watched, adapter_watch_interval, signers
        )
        self._connection = EngineConnection()
        self._supervisor = EngineSupervisor(
            self._connection,
            self._config,
            on_running=self._meet_engine,
            on_updates=self._take_updates,
            on_lost=self._lose_engine,
            on_death=self._judge,
            on_given_up=self._give_up,
            equip=self._equip,
            start_child=self._start_child,
        )
        self._process, self._loop = HomeProcess("AsyncLLM"), HomeLoop("AsyncLLM")
        self._phase = Phase.NEW
        self._starting: asyncio.Task[None] | None = None
        self._guard: asyncio.Task[None] | None = None  # shuts down when the event loop ends
        self._parts_or_none: _Parts | None = None
        self._on_serving_change: list[Callable[[bool], None]] = []
        self._load_watch = LoadWatch(self._look_at_load, self._check_can_begin)
        self._on_request_end: list[Callable[[output_processor.UserRequest], None]] = []
        self._loading = asyncio.Lock()

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> "AsyncLLM":
        return cls(**vars(engine_args))

    async def __aenter__(self) -> "AsyncLLM":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    # Life.

    async def start(self) -> None:
        """Loads the model and the start-up adapters, if that has not been done. To cancel it ends the engine. Raises
        EngineStartError, AdapterRejected, ValueError, WrongEventLoop, WrongProcess."""
        self._check_place()
        if self._phase is Phase.ENDED:
            raise EngineStartError("an AsyncLLM is started once; make another")
        await self._begin_start()

    def _begin_start(self) -> "asyncio.Task[None]":
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return self._starting

    async def _become_ready(self) -> None:
        """Returns when the engine has started, which begins with the first call. A call that is cancelled does not end
        the start, for which others may wait. Raises what the start raised, EngineUnavailable, WrongEventLoop,
        WrongProcess."""
        self._check_place()
        starting = self._begin_start() if self._phase is Phase.NEW else self._starting
        if starting is None:
            return
        if not starting.done():
            await asyncio.wait({starting})
        if starting.cancelled():
            raise EngineUnavailable("the start of the engine was cancelled")
        starting.result()

    def _check_place(self) -> None:
        """Raises WrongProcess, WrongEventLoop."""
        self._process.check()
        self._loop.check()

    async def _start(self) -> None:
        self._enter(Phase.STARTING)
        try:
            model = resolve_model(self._config.model, self._config.revision)
            targets = adapter_targets(load_model_config(model))
            tokenizer = load_tokenizer(model)
            raise_descriptor_limit()
            ready = await self._supervisor.start(model)
            self._check_is_starting()
            make_loader = partial(LoaderClient, model, targets, ready, self._start_child)
            self._parts_or_none = self._assemble(model, tokenizer, ready, make_loader)
            self._supervisor.supervise()
            for name, path in self._start_adapters.items():
                await self._adapters.load_from_anywhere(name, path)
            self._check_is_starting()
            self._adapters.follow_folder()
            self._enter(Phase.RUNNING)
            self._guard = asyncio.create_task(self._end_with_loop())
            self._tell_serving()
        except BaseException:
            await self._shut_down()
            raise

    async def _end_with_loop(self) -> None:
        """Shuts down when asyncio.run cancels what still runs: in no other event loop could the engine be reached."""
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if self._phase is not Phase.ENDED and self._process.is_here:
                await self._shut_down()
            raise

    def _enter(self, phase: Phase) -> None:
        if phase not in NEXT_PHASES[self._phase]:
            raise RuntimeError(f"an AsyncLLM that is {self._phase.value} cannot become {phase.value}")
        self._phase = phase

    def _check_is_starting(self) -> None:
        if self._phase is not Phase.STARTING:
            raise EngineUnavailable("the engine was shut down while it started")

    def _assemble(
        self, model: Path, tokenizer: Tokenizer, ready: Ready, make_loader: Callable[[], LoaderClient]
    ) -> _Parts:
        defaults = load_generation_defaults(model, tokenizer.eos_token_id, self._config.generation_config)
        front_end = FrontEnd(tokenizer, defaults, ready.facts, self._config, asyncio.get_running_loop().time)
        front_end.on_end = self._on_request_end
        adapters = AsyncAdapters(
            front_end.policy,
            front_end.adapters,
            self._connection,
            make_loader,
            self._sources,
            self._check_can_begin,
            self._abort_users,
            self._start_child,
        )
        texts = TextClients(model, ready.facts, self._start_child)
        grammars = GrammarClient(model, ready.facts.vocab_size, self._start_child)
        requests = AsyncRequests(
            self._connection, front_end, adapters, texts, grammars, self._check_can_begin, self._load_missing
        )
        tokens = AsyncTokens(front_end, adapters, texts)
        return _Parts(ready, front_end, adapters, requests, texts, tokens, grammars)

    def _lose_engine(self) -> None:
        self._tell_serving()
        self._requests.lose_engine()
        self._adapters.lose_engine()

    def _judge(self, death: Death) -> bool:
        """Sets aside what engines have crashed over; its requests end. Returns whether that was anything."""
        verdict = self._front_end.suspects.judge(death, self._front_end.outputs.digests())
        self._adapters.set_aside(verdict.adapters)
        self._requests.fail(verdict.requests)
        for reason in verdict.requests.values():
            tell(logger, "request_set_aside", f"a request is set aside: {reason}", logging.ERROR, reason=reason)
        self._requests.fail(self._front_end.with_adapters_set_aside())
        return bool(verdict.requests or verdict.adapters)

    def _give_up(self) -> None:
        self._requests.give_up()

    async def _equip(self, engine: Child[FromEngine]) -> None:
        await self._adapters.equip(engine)

    def _meet_engine(self) -> None:
        self._requests.fail(self._front_end.with_adapters_set_aside())  # by the failure to give them to this engine
        self._adapters.meet_engine()
        self._tell_serving()
        self._requests.give()

    async def drain(self, timeout: float | None = None) -> None:
        """Refuses new requests with EngineUnavailable and returns when the running ones are finished, whether or not
        their last outputs have been read. Those that are not after `timeout` seconds end with EngineUnavailable. Before
        start() has come to its end, raises EngineUnavailable and changes nothing."""
        self._check_place()
        if self._phase in (Phase.NEW, Phase.STARTING):
            raise self._connection.unavailable()
        if self._phase is Phase.RUNNING:
            self._enter(Phase.DRAINING)
            num = self._front_end.outputs.num_unfinished
            tell(logger, "draining", f"the engine drains; {num} samples are unfinished", num_unfinished=num)
        self._tell_serving()
        try:
            async with asyncio.timeout(timeout):
                await self._requests.become_idle()
        except TimeoutError:
            error = EngineUnavailable(
                f"the engine shuts down, and this request was not finished within {timeout:.1f} s"
            )
            self._requests.end_all_with(error)

    async def shutdown(self, timeout: float | None = None) -> None:
        """Ends the child processes; running requests are aborted. Idempotent. The end of the event loop does so too.
        timeout: seconds for the engine to end by itself before it is killed; None allows a few."""
        self._process.check()
        if self._phase is Phase.ENDED and not self._loop.is_here:
            return
        self._loop.check()
        await self._shut_down(timeout)
        if self._guard is not None:
            self._guard.cancel()

    async def _shut_down(self, timeout: float | None = None) -> None:
        if self._phase is not Phase.ENDED:
            self._enter(Phase.ENDED)
        parts = self._parts_or_none
        if parts is not None:
            parts.adapters.wake_watchers()
            await parts.adapters.stop_following()
            parts.requests.abort_all()
        await self._supervisor.stop(timeout)
        if parts is not None:
            await parts.texts.close()
            await parts.grammars.close()
            await parts.adapters.close()

    @property
    def is_serving(self) -> bool:
        return self._phase is Phase.RUNNING and self._connection.is_open

    @property
    def is_running(self) -> bool:
        """False once the engine has been shut down, or has failed to start. A restart changes nothing."""
        return self._phase is not Phase.ENDED

    @property
    def is_stopped(self) -> bool:
        return not self.is_running

    @property
    def errored(self) -> bool:
        return not self.is_running

    @property
    def dead_error(self) -> EngineUnavailable:
        return self._connection.unavailable()

    @once_started
    async def check_health(self) -> None:
        """Raises EngineUnavailable unless the engine runs, and is neither restarted nor drained."""
        self._connection.check_open()
        self._check_can_begin()

    def on_serving_change(self, callback: Callable[[bool], None]) -> None:
        """Calls back, in the event loop, when is_serving may have changed."""
        self._on_serving_change.append(callback)

    def on_request_end(self, callback: Callable[[output_processor.UserRequest], None]) -> None:
        """Calls back, in the event loop, with each request that has ended, however it did; what it takes, all wait
        for."""
        self._on_request_end.append(callback)

    def _tell_serving(self) -> None:
        for callback in self._on_serving_change:
            callback(self.is_serving)
        self._load_watch.wake()
        if self._parts_or_none is not None:
            self._adapters.wake_watchers()

    @property
    def _parts(self) -> _Parts:
        if self._parts_or_none is None:
            raise self._connection.unavailable()
        return self._parts_or_none

    @property
    def _front_end(self) -> FrontEnd:
        return self._parts.front_end

    @property
    def _requests(self) -> AsyncRequests:
        return self._parts.requests

    @property
    def _adapters(self) -> AsyncAdapters:
        return self._parts.adapters

    # Requests.

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: Adapter = None,
        priority: int = 0,
        tenant: str | Tenant = "",
        deadline: float | None = None,
        first_token_deadline: float | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generates for one prompt, yielding as sampling_params.output_kind says. Closing the generator aborts. The
        parameters are taken as they are at the call, whatever is assigned to them before the first iteration.

        lora_request: the name of a loaded adapter, or a LoRARequest, which loads its adapter if need be, once the call
        has no other fault; a sequence of adapters, or a mapping of names to scales, is their sum; None is the base
        model. deadline: the time of the event loop, as its time() tells it, at which the request ends, complete or not;
        first_token_deadline: at which it ends unless a token has come. Raises at the first iteration, before anything
        is allocated: InvalidRequest, AdapterNotFound, AdapterRejected, QueueFull, EngineUnavailable. Raises later:
        AdapterRejected for an adapter that had to be read again and is no longer what was loaded, EngineUnavailable
        when the engine died and no other could go on with the request, DeadlineExceeded.
        """
        sampling = kept(sampling_params)
        call = Call(prompt, sampling, lora_request, priority, tenant, deadline, first_token_deadline)
        return self._generate(call, request_id)

    async def _generate(self, call: Call, request_id: str | None) -> AsyncGenerator[RequestOutput, None]:
        requests = await self._requests_for([call])
        async with aclosing(requests.run([call], request_id)) as news:
            async for outputs in news:
                for output in outputs:
                    yield output

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: Adapter | Sequence[Adapter] = None,
        priority: Sequence[int] | None = None,
        tenant: str | Tenant | Sequence[str | Tenant] = "",
        *,
        request_id: str | None = None,
        deadline: float | None = None,
        first_token_deadline: float | None = None,
    ) -> AsyncGenerator[list[RequestOutput], None]:
        """Yields what is new of every row that grew, or, where the parameters of all say FINAL_ONLY, each row once; the
        request_id of an output is the row's index in prompts. Lists pair one to one with prompts. All prompts are
        accepted or none; raises as `generate` does. Closing the generator aborts.

        request_id: by which `abort` ends all rows. The deadlines are those of each row.
        """
        sampling, deadlines = kept(sampling_params), (deadline, first_token_deadline)
        pair = partial(pair_up, prompts, sampling, lora_request, priority, tenant, *deadlines)
        return self._stream(pair, request_id)

    async def _stream(
        self, pair: Callable[[], list[Call]], request_id: str | None
    ) -> AsyncGenerator[list[RequestOutput], None]:
        calls = pair()
        requests = await self._requests_for(calls)
        async with aclosing(requests.run(calls, request_id, kind_of_stream(calls))) as news:
            async for outputs in news:
                yield outputs

    async def _requests_for(self, calls: Sequence[Call]) -> AsyncRequests:
        """Waits for the start of the engine, until the deadlines of calls. Raises as `_become_ready` does, and
        DeadlineExceeded."""
        await Deadline(first_deadline(calls), first_token_deadline(calls)).bound(self._become_ready())
        return self._requests

    async def _load_missing(self, calls: Sequence[Checked]) -> None:
        """vLLM's way: a path comes with the request. Calls that come together load an adapter once: where another one
        has loaded it meanwhile, the files may have changed since that one read them."""
        self._adapters.expect_looks()
        async with self._loading:
            looks = await self._adapters.look_at(self._front_end.folders_to_look_at_again(calls))
            for request in self._front_end.adapters_to_load(calls, looks):
                await self.load_adapter(request.lora_name, request.lora_path)
                self._front_end.adapters.note_int_id(request)

    @once_started
    async def share_prompts(self, texts: Sequence[str]) -> None:
        """Names all the beginnings of prompts, such as system prompts, whose cached prefixes tenants share that share
        nothing else: see `Tenant`. Raises EngineUnavailable."""
        await self._requests.share_prompts(texts)

    def _check_can_begin(self) -> None:
        self._connection.check_expected()
        if self._phase in (Phase.DRAINING, Phase.ENDED):
            raise EngineUnavailable("the engine is shutting down")

    async def abort(self, request_id: str | Iterable[str], *, tenant: str | None = None) -> None:
        """Ends requests by their ids, those of one tenant only if it is named. Ids of unknown and of finished requests
        are fine."""
        self._check_place()
        if not isinstance(request_id, Iterable):
            raise InvalidRequest("request_id", f"{request_id!r:.80} is neither an id nor ids")
        labels = {request_id} if isinstance(request_id, str) else set(request_id)
        if self._parts_or_none is not None:
            self._requests.abort_labels(labels, tenant)

    def _abort_users(self, name: str, digests: Collection[str]) -> None:
        self._requests.abort_users(name, digests)

    async def _take_updates(self, updates: Updates) -> None:
        await self._requests.take_rows(updates.rows)
        self._front_end.suspects.forget_adapters(updates.unloaded)
        self._adapters.note_unloaded(updates.unloaded)
        self._adapters.lose_pins(updates.unpinned)
        if updates.residency:
            self._adapters.note_residency(updates.residency)
        self._front_end.note_step(updates.step, updates.step_costs)

    # Adapters.

    @once_started
    async def load_adapter(
        self, name: str, path: str | Path, *, pinned: bool = False, owner: Tenant | None = None
    ) -> AdapterInfo:
        """Loads a PEFT folder as the active version of a name; running requests finish on the version they began with.
        The least recently active versions go when there are more than `max_adapter_versions`. The returned info has a
        report.

        owner: the tenant for which it is loaded; it may load new names, and change what it has loaded itself. None may
        change everything. Methods that change an adapter take it, and raise PermissionDenied.

        Raises AdapterRejected with everything that does not fit, AdapterTooLarge, InvalidRequest, EngineUnavailable.
        When there is no room now to pin the adapter, AdapterTooLarge is raised too, and the adapter is loaded all the
        same, without a pin.
        """
        return await self._adapters.load(name, path, pinned=pinned, owner=owner)

    @once_started
    async def upload_adapter(
        self,
        name: str,
        files: Sequence[UploadedFile],
        chunks: AsyncIterable[bytes],
        *,
        pinned: bool = False,
        owner: Tenant | None = None,
    ) -> AdapterInfo:
        """Does what `load_adapter` does, from the bytes of all files, one after another, in chunks of any size.

        Raises as `load_adapter` does, InvalidRequest for a bad list of files, AdapterRejected for bytes that differ
        from the announced ones, QueueFull for too many uploads at once.
        """
        return await self._adapters.upload(name, files, chunks, pinned=pinned, owner=owner)

    @once_started
    async def inspect_adapter(self, path: str | Path) -> AdapterReport:
        """Reports what loading a PEFT folder would come to, and every problem found; loads nothing. Raises
        InvalidRequest, EngineUnavailable, AdapterRejected where no folder may be loaded."""
        return await self._adapters.inspect(path)

    @once_started
    async def activate_adapter(self, name: str, version: int, *, owner: Tenant | None = None) -> AdapterInfo:
        """Makes a name mean a version that is kept, such as the one before. Running requests finish on the version they
        began with. Raises AdapterNotFound, AdapterRejected for a version that had to be read again and is no longer
        what was loaded."""
        return await self._adapters.activate(name, version, owner=owner)

    @once_started
    async def warm_adapter(self, name: str, *, owner: Tenant | None = None) -> AdapterInfo:
        """Starts to make an adapter resident in the arena, where it may be evicted again. Raises AdapterTooLarge when
        running requests leave no room now."""
        return await self._adapters.warm(name, owner=owner)

    @once_started
    async def unload_adapter(self, name: str, *, abort: bool = False, owner: Tenant | None = None) -> AdapterInfo:
        """Refuses new requests for the name at once; returns when the running ones are finished, or aborted, and the
        adapter is freed. "name@2" takes one version away; the active one of several is not, which raises
        InvalidRequest."""
        return await self._adapters.unload(name, abort=abort, owner=owner)

    @once_started
    async def pin_adapter(self, name: str, pinned: bool = True, *, owner: Tenant | None = None) -> AdapterInfo:
        """Keeps an adapter resident in the arena. Raises AdapterTooLarge when running requests leave no room now."""
        return await self._adapters.pin(name, pinned, owner=owner)

    # Adapters by the lora_int_id of the LoRARequest that loaded them, as in vLLM.

    @once_started
    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Loads an adapter as a request with it would. Returns True, also if it is loaded already. Raises as
        `load_adapter` does, AdapterNotFound for an unknown name without a path."""
        self._adapters.expect_looks()
        async with self._loading:
            looks = await self._adapters.look_at(self._front_end.folders_to_look_at([Call("", adapter=lora_request)]))
            for request in self._front_end.lora_to_load(lora_request, looks):
                await self.load_adapter(request.lora_name, request.lora_path)
            self._front_end.adapters.note_int_id(lora_request)
        return True

    @once_started
    async def remove_lora(self, lora_id: int) -> bool:
        """Unloads the adapter that was loaded for an id, as `unload_adapter` does. Returns whether there was one.
        Raises InvalidRequest for an id of several names."""
        name = self._front_end.adapters.find_int_id(lora_id)
        if name is not None:
            await self.unload_adapter(name)
        return name is not None

    @once_started
    async def list_loras(self) -> set[int]:
        """The ids of loaded adapters. An adapter that was loaded by name alone has none."""
        return self._front_end.adapters.int_ids()

    @once_started
    async def pin_lora(self, lora_id: int) -> bool:
        """Keeps the adapter that was loaded for an id resident in the arena. Returns True. Raises AdapterNotFound,
        AdapterTooLarge, InvalidRequest for an id of several names."""
        await self.pin_adapter(self._front_end.adapters.named_by_int_id(lora_id))
        return True

    @once_started
    async def get_adapter(self, name: str) -> AdapterInfo:
        """name: "name", which means its active version, or "name@2". Raises AdapterNotFound."""
        return await self._adapters.get(name)

    @once_started
    async def list_adapters(self) -> list[AdapterInfo]:
        return await self._adapters.all()

    async def watch_adapters(self) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]:
        """Yields a snapshot of all loaded adapters, then the events that happen to adapters. A client that reads too
        slowly for the kept events gets another snapshot. Raises EngineUnavailable when the engine ends or drains."""
        await self._become_ready()
        async with aclosing(self._adapters.watch()) as news:
            async for piece in news:
                yield piece

    @once_started
    async def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Does what `LLM.reset_prefix_cache` does. Raises EngineUnavailable."""
        reply: DoneReply = await self._connection.call(
            lambda call_id: ResetPrefixCache(call_id, reset_running_requests)
        )
        return reply.is_done

    # Facts.

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together. Known before the engine has started, from the model's files. Raises
        EngineStartError."""
        wished = self._config.max_model_len
        return (
            wished
            or load_model_config(resolve_model(self._config.model, self._config.revision)).max_position_embeddings
        )

    def most_listed(self) -> Mapping[str, int]:
        """The most entries that each list of a request may have, by the name of its field. Raises EngineUnavailable
        before the engine has started."""
        return self._front_end.most_listed

    def check_integrity(self) -> None:
        """Raises RuntimeError when an adapter, its image in host memory, or a reference to one has no owner."""
        uses = [digest for user in self._front_end.outputs.users() for _, digest in user.adapters]
        self._adapters.check_integrity(uses)
        self._front_end.admission.check_integrity(self._front_end.outputs.users())
        self._requests.check_integrity()

    def check_idle(self) -> None:
        """Raises RuntimeError unless, with no request unfinished, nothing of one is left and no adapter is on its way
        in or out."""
        self.check_integrity()
        self._requests.check_idle()
        self._adapters.check_idle()

    @once_started
    async def get_info(self) -> EngineInfo:
        """Facts of the engine, its load, and its counts. Raises EngineUnavailable."""
        state: StateReply = await self._connection.call(lambda call_id: GetState(call_id, []))
        return engine_info(
            self._config, self._parts.ready.dtype, self._parts.ready.page_bytes, state.load, self._front_end
        )

    async def get_statistics(self) -> statistics.Statistics:
        """What metrics and load reports are made of. While there is no engine, and from one that gives no answer within
        a second, there are only the facts of the front end. Raises EngineUnavailable at once before the engine has
        started, WrongEventLoop, WrongProcess."""
        self._check_place()
        front_end = self._front_end
        info = None
        if self._connection.is_open:
            with suppress(TimeoutError, EngineUnavailable):
                async with asyncio.timeout(PATIENCE_FOR_INFO):
                    info = await self.get_info()
        return statistics.statistics_of(self._config, front_end, info, self.is_serving, self._requests.num_resumed)

    async def watch_load(self, most_per_second: float = 1.0) -> AsyncGenerator[LoadSnapshot, None]:
        """Yields the load at once, then whenever it has changed, at most so often, and at most ten times a second.
        Raises EngineUnavailable when the engine ends or drains, LimitReached, InvalidRequest."""
        await self._become_ready()
        async with aclosing(self._load_watch.watch(most_per_second)) as news:
            async for snapshot in news:
                yield snapshot

    async def _look_at_load(self) -> LoadSnapshot:
        load = None
        if self._connection.is_open:
            with suppress(TimeoutError, EngineUnavailable):
                async with asyncio.timeout(PATIENCE_FOR_INFO):
                    state: StateReply = await self._connection.call(lambda call_id: GetState(call_id, []))
                    load = state.load
        return load_snapshot(self._front_end, load, is_serving=self.is_serving)

    @once_started
    async def tokenize(
        self,
        prompt: Prompt,
        *,
        lora_request: Adapter = None,
        add_special_tokens: bool = True,
        with_texts: bool = False,
        tenant: str | Tenant = "",
    ) -> Tokens:
        """Returns the tokens of a prompt for these adapters, which have to be loaded. add_special_tokens: whether the
        tokenizer puts its own around a text; a conversation has those of its template. Raises InvalidRequest,
        AdapterNotFound, QueueFull, EngineUnavailable."""
        self._check_can_begin()
        call = Call(prompt, adapter=lora_request, tenant=tenant)
        return await self._parts.tokens.tokenize(call, add_special_tokens=add_special_tokens, with_texts=with_texts)

    @once_started
    async def detokenize(
        self, token_ids: Sequence[int], *, lora_request: Adapter = None, skip_special_tokens: bool = False
    ) -> str:
        """Returns the text of tokens, as the answers of a request show it. Raises InvalidRequest, AdapterNotFound."""
        tokens = self._parts.tokens
        return await tokens.detokenize(token_ids, lora_request, skip_special_tokens=skip_special_tokens)

    def chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: Adapter = None,
        priority: int = 0,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tenant: str | Tenant = "",
        deadline: float | None = None,
        first_token_deadline: float | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Does what `generate` does, for a conversation in the chat template of its adapter, or of the model where the
        adapter has none. The arguments of the template are those of `LLM.chat`."""
        prompt: Prompt = {
            "messages": messages,
            "chat_template": chat_template,
            "chat_template_content_format": chat_template_content_format,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": tools,
            "chat_template_kwargs": chat_template_kwargs,
        }
        return self.generate(
            prompt,
            sampling_params,
            request_id,
            lora_request=lora_request,
            priority=priority,
            tenant=tenant,
            deadline=deadline,
            first_token_deadline=first_token_deadline,
        )

    def get_tokenizer(self, lora_request: Adapter = None) -> UserTokenizer:
        """The tokenizer of prompts for these adapters, which have to be loaded."""
        return self._front_end.tokenizer_of(lora_request).for_users

    def get_default_sampling_params(self) -> SamplingParams:
        """A copy of the parameters of requests that bring none."""
        return self._front_end.defaults.sampling.clone()


AsyncLLMEngine = AsyncLLM  # the name that it had in vLLM before
