"""LLM: the engine in this process. It drives a core directly, one step after another.

Threads may share it. A method that touches the engine, or what the front end knows, runs `in_turn`: a Driver decides in
which thread. Files of adapters are read in the thread of the caller, beside the steps of others.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from blora.adapters import (
    AdapterImage,
    AdapterRejected,
    AdapterReport,
    Checkpoint,
    inspect_adapter,
    pack,
    read_checkpoint,
    report_of,
)
from blora.adapters.peft.fingerprint import fingerprint
from blora.scheduler import FinishReason, RequestOutputKind, SamplingParams

from .adapter_store.catalog import Looks, NamedAdapter
from .adapter_store.orders import (
    AbortRequests,
    AwaitUnloaded,
    BringBack,
    DropImage,
    GiveImage,
    Immediate,
    Operation,
    Order,
    Pin,
    ReadAgain,
    Result,
    Unload,
    Unpin,
    Warm,
    carry_out,
)
from .adapter_store.source import Source, resolve_adapter
from .arguments.engine_args import EngineArgs, engine_config
from .arguments.unserved import TellsUnserved
from .errors import EngineBroken, InvalidRequest
from .front_end.adapter_choice import Adapter, brings_path
from .front_end.calls import Call, Conversation, Prompt, chat_prompts, pair_up
from .front_end.engine_info import engine_info
from .front_end.front_end import Checked, FrontEnd
from .front_end.generation_config import load_generation_defaults
from .front_end.grammar_here import with_grammar
from .front_end.output_processor import UserRequest
from .grammar.grammars import Grammars
from .ipc.sealed_memory import map_sealed, seal
from .memory.page_size import max_elements
from .metrics import Metric, metrics_of
from .model.targets import adapter_targets
from .model_files.base_tensors import BaseTensorFiles
from .model_files.hub import resolve_model
from .options import adapter_paths
from .outputs import AdapterInfo, EngineInfo, LoRARequest, RequestOutput
from .requests.row_stream import RowStream
from .startup.start import start_engine
from .step.driver import Driver
from .text.tokenizer import load_tokenizer
from .text.user_tokenizer import UserTokenizer

NO_OTHER_ENGINE = "An LLM has its engine in its own process, so none goes on with its requests: make another LLM"
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def in_turn(
    method: "Callable[Concatenate[LLM, Parameters], Returned]",
) -> "Callable[Concatenate[LLM, Parameters], Returned]":
    """Makes a method of LLM run between two steps, in the thread that works on the engine."""

    @wraps(method)
    def run(self: "LLM", /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        return self._driver.run(partial(method, self, *args, **kwargs))

    return run


class LLM(TellsUnserved):
    """Generates text for batches of (prompt, adapter) pairs. Threads may share it: their requests are computed
    together. A child process that was forked may not use it, which raises WrongProcess.

    model: a Hugging Face folder, a hub id or a .gguf file. adapters: name -> PEFT folder or hub id, loaded at once.
    Other options are those of EngineConfig. An adapter whose image has left the host cache is read again by the call
    that needs it, before anything runs. Raises EngineStartError, AdapterRejected, ValueError for a bad option.

    Its engine has no process of its own: what kills the engine kills the caller, and a call during which the engine
    breaks raises EngineBroken. In an AsyncLLM and in a server another engine goes on with the requests.
    """

    def __init__(self, model: str | Path, *, adapters: Mapping[str, str | Path] | None = None, **options: Any) -> None:
        # As in vLLM, a script gives the same output each time it runs.
        self._config = engine_config(model, **{"seed": 0} | options).without_streams()
        start_adapters = adapter_paths(adapters)
        folder = resolve_model(self._config.model, self._config.revision)
        self._base = BaseTensorFiles(folder)
        tokenizer = load_tokenizer(folder)
        defaults = load_generation_defaults(folder, tokenizer.eos_token_id, self._config.generation_config)
        self._engine = start_engine(self._config, folder)
        self._core = self._engine.core
        # The number of threads that compute is a setting of each thread that has them compute.
        self._driver = Driver(self._step, begin=partial(torch.set_num_threads, torch.get_num_threads()))
        self._front_end = FrontEnd(tokenizer, defaults, self._engine.facts, self._config)
        self._grammars = Grammars(lambda: tokenizer, self._engine.facts.vocab_size)
        self._adapters = self._front_end.adapters
        self._policy = self._front_end.policy
        self._queue = RowStream(self._front_end.outputs, (), self._driver, self._drop)
        for name, path in start_adapters.items():
            self.load_adapter(name, path)

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> "LLM":
        return cls(**vars(engine_args))

    def close(self) -> None:
        """Ends the engine, and the processes that share the model with this one: calls that wait in other threads, and
        all later ones, raise EngineUnavailable. Idempotent. The processes end with this object at the latest."""
        self._driver.close(self._engine.shards.close)

    # Generation.

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: Adapter | Sequence[Adapter] = None,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: Sequence[int] | None = None,
        tenant: str | Sequence[str] = "",
    ) -> list[RequestOutput]:
        """Generates for every prompt and returns the outputs in their order.

        Lists pair one to one with prompts; a single value goes with each. lora_request: the name of a loaded adapter,
        or a LoRARequest, which loads its adapter if need be, once the call has no other fault; a mapping of names to
        scales, or a sequence of adapters inside the list, is the sum of several; None is the base model. tenant: the
        one whose fair share of service the prompt is served from. use_tqdm: shows a bar, which a callable makes. Raises
        InvalidRequest, AdapterNotFound, AdapterRejected or QueueFull before anything runs; a request that fails later
        has finish_reason "error".
        """
        stream = self._open(prompts, sampling_params, lora_request, priority, tenant, RequestOutputKind.FINAL_ONLY)
        with stream, _progress(len(stream.users), use_tqdm) as progress:
            return stream.complete(progress.update)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Adapter | Sequence[Adapter] = None,
        priority: Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tenant: str | Sequence[str] = "",
    ) -> list[RequestOutput]:
        """Does what `generate` does, for one conversation or a list of them, each in the chat template of its adapter,
        or of the model where the adapter has none.

        The template reads any field of a message; contents are texts or lists of text parts. tools: what the model may
        call, as in OpenAI's API. chat_template: takes the place of the adapter's and the model's.
        chat_template_kwargs: further variables of the template, such as {"enable_thinking": False}.
        continue_final_message: the final message is continued; needs add_generation_prompt=False.
        chat_template_content_format: "string" gives contents to the template as texts, "openai" as parts, "auto" as it
        expects them.
        """
        prompts = chat_prompts(
            messages,
            chat_template=chat_template,
            chat_template_content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
        )
        return self.generate(prompts, sampling_params, lora_request, use_tqdm, priority, tenant)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: Adapter | Sequence[Adapter] = None,
        priority: Sequence[int] | None = None,
        tenant: str | Sequence[str] = "",
    ) -> "RowStream":
        """Yields after each step what is new of every row that grew; request_id is the row's index in prompts.

        The call accepts the requests, and raises as `generate` does. Closing the stream, or leaving a `with` block
        around it, aborts the unfinished ones.
        """
        stream = self._open(prompts, sampling_params, lora_request, priority, tenant, RequestOutputKind.DELTA)
        for index, user in enumerate(stream.users):
            user.request_id = str(index)
        return stream

    def _open(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        lora_request: Adapter | Sequence[Adapter],
        priority: Sequence[int] | None,
        tenant: str | Sequence[str],
        kind: RequestOutputKind | None,
    ) -> RowStream:
        """kind: of the outputs; None leaves it to the parameters of each request."""
        batch = pair_up(prompts, sampling_params, lora_request, priority, tenant)
        looks = self._look_at([call for call in batch if brings_path(call.adapter)])
        begun = self._check(batch, looks, kind)
        if isinstance(begun, RowStream):
            return begun
        for request in self._to_load(begun, looks):  # vLLM's way: a path comes with the request
            self.load_adapter(request.lora_name, request.lora_path)
            self._note_int_id(request)
        return self._begin_loaded([with_grammar(call, self._grammars) for call in begun], kind)

    def _look_at(self, calls: Sequence[Call]) -> Looks:
        """calls: those that bring paths. A slow disk holds up this caller only."""
        return {folder: fingerprint(Path(folder)) for folder in self._folders_to_look_at(calls)} if calls else {}

    @in_turn
    def _folders_to_look_at(self, calls: Sequence[Call]) -> list[str]:
        return self._front_end.folders_to_look_at(calls)

    @in_turn
    def _check(self, batch: Sequence[Call], looks: Looks, kind: RequestOutputKind | None) -> RowStream | list[Checked]:
        """Checks calls, and begins them where nothing has to be loaded or compiled for them."""
        calls = [self._front_end.check(self._front_end.open(call, looks)) for call in batch]
        self._front_end.check_queue([call.opened for call in calls])
        if not any(call.opened.grammar for call in calls) and not self._front_end.adapters_to_load(calls, looks):
            return self._begin(calls, kind)
        self._front_end.check_ahead(calls)
        return calls

    @in_turn
    def _to_load(self, calls: Sequence[Checked], looks: Looks) -> list[LoRARequest]:
        return self._front_end.adapters_to_load(calls, looks)

    @in_turn
    def _note_int_id(self, request: LoRARequest) -> None:
        self._adapters.note_int_id(request)

    @in_turn
    def _begin_loaded(self, calls: Sequence[Checked], kind: RequestOutputKind | None) -> RowStream:
        return self._begin([self._front_end.check_again(call) for call in calls], kind)

    def _begin(self, calls: Sequence[Checked], kind: RequestOutputKind | None) -> RowStream:
        """Accepts requests, has missing images of their adapters read again, and gives the requests to the core."""
        prepared = [self._front_end.prepare(call) for call in calls]
        for entry in prepared:
            entry.user.output_kind = kind or entry.user.output_kind
        self._front_end.accept(prepared)
        stream = RowStream(self._front_end.outputs, [entry.user for entry in prepared], self._driver, self._drop)
        try:
            self._do(BringBack(tuple({digest for entry in prepared for _, digest in entry.user.adapters})))
        except BaseException:
            stream.close()
            raise
        for entry in prepared:
            for request in entry.requests:
                matcher = None if request.grammar is None else self._grammars.matcher(request.grammar)
                self._core.add_request(request.to_request(matcher))
        return stream

    # Generation, step by step: vLLM's LLMEngine, and its queue.

    @property
    def llm_engine(self) -> "LLM":
        """This object, which is its own engine."""
        return self

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        arrival_time: float | None = None,
        lora_request: Adapter = None,
        *,
        priority: int = 0,
        tenant: str = "",
    ) -> str:
        """Accepts a request, which `step` computes and shows under this id; returns the id. arrival_time: for the
        metrics, as time.time() tells it. Raises as `generate` does, and InvalidRequest for the id of an unfinished
        request."""
        if not isinstance(request_id, str):
            raise InvalidRequest("request_id", f"{type(request_id).__name__} is not a text")
        stream = self._open([prompt], params, [lora_request], [priority], tenant, None)
        (user,) = stream.users
        user.request_id = request_id
        user.metrics.arrival_time = user.metrics.arrival_time if arrival_time is None else arrival_time
        self._join_queue(stream)
        return request_id

    def enqueue(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: Adapter | Sequence[Adapter] = None,
        priority: Sequence[int] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        tenant: str | Sequence[str] = "",
    ) -> list[str]:
        """Accepts requests, which `wait_for_completion` computes; returns their ids. Raises as `generate` does."""
        stream = self._open(prompts, sampling_params, lora_request, priority, tenant, RequestOutputKind.FINAL_ONLY)
        self._join_queue(stream)
        with _progress(len(stream.users), use_tqdm) as progress:
            progress.update(len(stream.users))
        return [user.request_id for user in stream.users]

    def enqueue_chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Adapter | Sequence[Adapter] = None,
        priority: Sequence[int] | None = None,
        tenant: str | Sequence[str] = "",
        **template: Any,
    ) -> list[str]:
        """Does what `enqueue` does, for conversations. template: the arguments of the template, as `chat` has them."""
        prompts = chat_prompts(messages, **template)
        return self.enqueue(prompts, sampling_params, lora_request, priority, use_tqdm, tenant)

    @in_turn
    def _join_queue(self, stream: RowStream) -> None:
        taken = set(self._queue.labels()).intersection(stream.labels())
        if taken:
            stream.close()
            raise InvalidRequest("request_id", f"{min(taken)!r:.140} is the id of an unfinished request")
        self._queue.take_over(stream)

    def step(self) -> list[RequestOutput]:
        """Has one step computed for all requests. Returns the new outputs of those that `add_request` and `enqueue`
        accepted."""
        return self._queue.step()

    def wait_for_completion(self, *, use_tqdm: bool | Callable[..., Any] = True) -> list[RequestOutput]:
        """Has steps computed until all requests that `enqueue` and `add_request` accepted are finished. Returns their
        final outputs in the order in which they were accepted."""
        with _progress(self.get_num_unfinished_requests(), use_tqdm) as progress:
            return self._queue.complete(progress.update)

    @in_turn
    def abort_request(self, request_ids: str | Sequence[str]) -> None:
        """Aborts requests that `add_request` or `enqueue` accepted. Unknown ids are allowed."""
        self._queue.abort([request_ids] if isinstance(request_ids, str) else list(request_ids))

    def has_unfinished_requests(self) -> bool:
        """Returns whether `step` has something to compute or to show."""
        return self.get_num_unfinished_requests() > 0

    @in_turn
    def get_num_unfinished_requests(self) -> int:
        return len(self._queue.labels())

    # Steps.

    def _step(self) -> None:
        try:
            updates = self._core.step()
        except EngineBroken as error:
            raise EngineBroken(f"{error}. {NO_OTHER_ENGINE}") from error
        for progress in self._front_end.outputs.process(updates):
            self._finish(progress.to_finish)

    def _finish(self, sample_ids: Sequence[int]) -> None:
        for sample_id in sample_ids:
            self._core.finish(sample_id)
        self._settle()

    def _drop(self, users: Iterable[UserRequest]) -> None:
        for user in users:
            self._finish(self._front_end.outputs.remove(user))

    # The prefix cache.

    @in_turn
    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Empties the prefix cache, but for blocks that running requests hold. reset_running_requests: no other request
        finds those, either; running requests go on. Returns whether the prefix cache is empty now."""
        return self._core.reset_prefix_cache(reset_running_requests)

    # Adapters.

    def load_adapter(self, name: str, path: str | Path) -> AdapterInfo:
        """Loads a PEFT folder or hub id as the active version of a name; running requests finish on the version they
        began with. The least recently active versions go when there are more than `max_adapter_versions`. The returned
        info has a report.

        Raises AdapterRejected with everything that does not fit, AdapterTooLarge, InvalidRequest for a bad name.
        """
        self._driver.check_open()
        self._adapters.check_name(name)
        self._adapters.check_path(path)
        folder = resolve_adapter(str(path))
        checkpoint = self._read(folder)
        image = self._pack(checkpoint)
        self._adapters.check_size(str(path), image.table.num_pages)
        source = Source(str(path), str(folder.absolute()), fingerprint=checkpoint.fingerprint)
        return self._take_in(name, checkpoint, image, source)

    @in_turn
    def _take_in(self, name: str, checkpoint: Checkpoint, image: AdapterImage, source: Source) -> AdapterInfo:
        self._adapters.judge_text(source.path, image.table)
        table = self._policy.expect(source.path, image.table)
        self._carry_out(self._policy.take_in(name, table, image, source))
        return replace(self.get_adapter(name), report=report_of(checkpoint, table))

    def inspect_adapter(self, path: str | Path) -> AdapterReport:
        """Reports what loading a PEFT folder or hub id would come to, and every problem found; loads nothing. Raises
        InvalidRequest for a value that is no path."""
        self._driver.check_open()
        self._adapters.check_path(path)
        try:
            folder = resolve_adapter(str(path))
        except AdapterRejected as error:
            return AdapterReport(str(path), error.problems)
        targets, engine = adapter_targets(self._engine.model_config), self._engine
        report = inspect_adapter(
            folder,
            targets,
            engine.dtype,
            engine.page_bytes,
            base=self._base,
            max_elements=self._max_elements,
            layout=engine.layout,
            shards=engine.cuts,
        )
        return self._driver.run(partial(self._adapters.check_report, report))

    @in_turn
    def activate_adapter(self, name: str, version: int) -> AdapterInfo:
        """Makes a name mean a version that is kept, such as the one before. Raises AdapterNotFound, AdapterRejected for
        a version that had to be read again and is no longer what was loaded."""
        self._carry_out(self._policy.activate(name, version))
        return self.get_adapter(name)

    @in_turn
    def warm_adapter(self, name: str) -> AdapterInfo:
        """Makes an adapter resident in the arena, where it may be evicted again. Raises AdapterTooLarge when running
        requests leave no room now."""
        self._carry_out(self._policy.warm(name))
        return self.get_adapter(name)

    @in_turn
    def unload_adapter(self, name: str, *, abort: bool = False) -> AdapterInfo:
        """Refuses new requests for the name from now on. Running requests finish, or are aborted; then the adapter is
        freed. "name@2" takes one version away; the active one of several is not, which raises InvalidRequest."""
        info = self.get_adapter(name)
        self._carry_out(self._policy.unload(name, abort=abort))
        return info

    @in_turn
    def pin_adapter(self, name: str, pinned: bool = True) -> AdapterInfo:
        """Keeps an adapter resident in the arena. Raises AdapterTooLarge when running requests leave no room now."""
        return self.get_adapter(self._carry_out(self._policy.pin(name) if pinned else self._policy.unpin(name)))

    # Adapters by the lora_int_id of the LoRARequest that loaded them, as in vLLM.

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Loads an adapter as a request with it would. Returns True, also if it is loaded already. Raises as
        `load_adapter` does, AdapterNotFound for an unknown name without a path."""
        looks = self._look_at([Call("", adapter=lora_request)])
        for request in self._lora_to_load(lora_request, looks):
            self.load_adapter(request.lora_name, request.lora_path)
        self._note_int_id(lora_request)
        return True

    @in_turn
    def _lora_to_load(self, lora_request: LoRARequest, looks: Looks) -> tuple[LoRARequest, ...]:
        return self._front_end.lora_to_load(lora_request, looks)

    @in_turn
    def remove_lora(self, lora_id: int) -> bool:
        """Unloads the adapter that was loaded for an id. Returns whether there was one. Raises InvalidRequest for an id
        of several names."""
        name = self._adapters.find_int_id(lora_id)
        if name is not None:
            self.unload_adapter(name)
        return name is not None

    @in_turn
    def list_loras(self) -> set[int]:
        """The ids of loaded adapters. An adapter that was loaded by name alone has none."""
        return self._adapters.int_ids()

    @in_turn
    def pin_lora(self, lora_id: int) -> bool:
        """Keeps the adapter that was loaded for an id resident in the arena. Returns True. Raises AdapterNotFound,
        AdapterTooLarge, InvalidRequest for an id of several names."""
        self.pin_adapter(self._adapters.named_by_int_id(lora_id))
        return True

    @in_turn
    def get_adapter(self, name: str) -> AdapterInfo:
        """name: "name", which means its active version, or "name@2". Raises AdapterNotFound."""
        return self._describe(self._adapters.named(name))

    @in_turn
    def list_adapters(self) -> list[AdapterInfo]:
        return [self._describe(adapter) for adapter in self._adapters.all()]

    def _describe(self, adapter: NamedAdapter) -> AdapterInfo:
        digest = adapter.table.digest
        return self._adapters.describe(adapter, self._core.adapter_state(digest), digest in self._front_end.ledger)

    # Orders of the policy.

    def _carry_out(self, operation: Operation[Result]) -> Result:
        return carry_out(operation, self._do)

    def _settle(self) -> None:
        """Follows when requests have ended: what they alone used may go."""
        for order in self._policy.settle():
            self._do_now(order)

    def _do(self, order: Order) -> Any:
        match order:
            case BringBack(digests):
                for digest in self._policy.missing(digests):
                    self._carry_out(self._policy.read_again(digest))
            case ReadAgain():
                return self._read_again(order)
            case GiveImage(table, image):
                self._core.load_adapter(table, torch.from_numpy(self._shared(image)))
            case Pin(digest):
                return self._core.pin_adapter(digest)
            case Warm(digest):
                return self._warm(digest)
            case AwaitUnloaded():
                pass  # the requests that it would wait for may be the caller's own, which go on when this returns
            case Unpin() | DropImage() | Unload() | AbortRequests():
                self._do_now(order)
        return None

    def _do_now(self, order: Immediate) -> None:
        match order:
            case Unpin(digest):
                self._core.unpin_adapter(digest)
            case DropImage(digest):
                self._core.drop_image(digest)
            case Unload(digest):
                self._unload(digest)
            case AbortRequests(name, digests):
                self._abort(self._front_end.outputs.users_of(name, digests))

    def _read_again(self, order: ReadAgain) -> AdapterImage:
        checkpoint = self._read(Path(order.source.folder))
        order.check(checkpoint.digest)
        return self._pack(checkpoint)

    def _read(self, folder: Path) -> Checkpoint:
        targets = adapter_targets(self._engine.model_config)
        return read_checkpoint(folder, targets, base=self._base, max_elements=self._max_elements)

    @property
    def _max_elements(self) -> int:
        """The largest number of weights of an adapter that the arena can hold."""
        engine = self._engine
        return max_elements(engine.facts.num_pages, engine.page_bytes, engine.dtype) * engine.shards.size

    def _pack(self, checkpoint: Checkpoint) -> AdapterImage:
        engine = self._engine
        return pack(checkpoint, engine.dtype, engine.page_bytes, engine.layout, engine.cuts)

    def _shared(self, image: AdapterImage) -> np.ndarray:
        """The pages of an image; where further shards need them, in memory that all shards map."""
        shards = self._engine.shards
        if shards.size == 1:
            return image.pages
        descriptor = seal(image.pages)
        try:
            shards.load_adapter(image.table, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return map_sealed(descriptor, image.table.num_bytes).reshape(image.pages.shape)

    def _warm(self, digest: str) -> bool:
        if not self._core.warm_adapter(digest):
            return False
        while self._core.has_work and not self._core.adapter_state(digest).is_resident:
            self._step()
        return True

    def _unload(self, digest: str) -> None:
        self._core.unload_adapter(digest)
        for freed in self._core.take_unloaded():
            self._policy.note_unloaded(freed)

    def _abort(self, users: Iterable[UserRequest]) -> None:
        for user in users:
            self._finish(self._front_end.outputs.fail(user, FinishReason.ABORT))

    # Facts.

    @in_turn
    def get_tokenizer(self, lora_request: Adapter = None) -> UserTokenizer:
        """The tokenizer of prompts for these adapters, which have to be loaded."""
        return self._front_end.tokenizer_of(lora_request).for_users

    def get_default_sampling_params(self) -> SamplingParams:
        """A copy of the parameters of requests that bring none."""
        return self._front_end.defaults.sampling.clone()

    @in_turn
    def get_info(self) -> EngineInfo:
        """Facts of the engine, its load, and its counts."""
        engine = self._engine
        return engine_info(self._config, engine.dtype, engine.page_bytes, self._core.load, self._front_end)

    def get_metrics(self) -> list[Metric]:
        """The counts of the engine under vLLM's names."""
        return metrics_of(self.get_info())

    @in_turn
    def check_integrity(self) -> None:
        """Raises RuntimeError when a page, an adapter, an image or a reference has no owner, or more than one."""
        self._core.check_integrity()
        uses = [digest for user in self._front_end.outputs.users() for _, digest in user.adapters]
        self._policy.check_integrity(uses, self._core.images())
        self._front_end.admission.check_integrity(self._front_end.outputs.users())

    @in_turn
    def check_idle(self) -> None:
        """Raises RuntimeError unless no request is unfinished, and everything but pinned adapters is given back."""
        self.check_integrity()
        self._core.check_idle()
        if self._front_end.outputs.num_unfinished:
            num_unfinished = self._front_end.outputs.num_unfinished
            raise RuntimeError(f"{num_unfinished} samples are unfinished here, and unknown to the core")


def _progress(total: int, use_tqdm: bool | Callable[..., Any]) -> Any:
    """The bar of a call, which shows the number of finished requests."""
    make = use_tqdm if callable(use_tqdm) else tqdm
    return make(total=total, desc="requests", disable=not use_tqdm)


LLMEngine = LLM  # the name by which vLLM's scripts drive an engine step by step
