"""LLM: the engine in this process. Drives a core directly, one step after another, in the caller's thread."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from blora.adapters import (
    AdapterImage,
    AdapterRejected,
    AdapterReport,
    AdapterTooLarge,
    Checkpoint,
    ImageTable,
    inspect_adapter,
    pack,
    read_checkpoint,
    report_of,
)
from blora.scheduler import FinishReason, RequestOutputKind, SamplingParams

from .adapter_store.catalog import NamedAdapter
from .adapter_store.source import Source, resolve_adapter
from .front_end.adapter_choice import Adapter
from .front_end.calls import Conversation, Prompt, conversations, pair_up
from .front_end.engine_info import engine_info
from .front_end.front_end import FrontEnd, Prepared
from .front_end.generation_config import load_generation_defaults
from .front_end.output_processor import OutputProcessor, UserRequest
from .ipc.sealed_memory import map_sealed, seal
from .memory.page_size import max_elements
from .model.targets import adapter_targets
from .model_files.base_tensors import BaseTensorFiles
from .model_files.hub import resolve_model
from .options import adapter_paths, engine_config
from .outputs import AdapterInfo, EngineInfo, RequestOutput
from .startup.start import start_engine
from .text.tokenizer import Tokenizer, load_tokenizer


class RowStream:
    """Rows that grow together: an iterator over the outputs of each step, from requests accepted before it is made.

    Several may be open at once: whoever steps, steps for everybody, and each takes what is its own.
    """

    def __init__(
        self,
        outputs: OutputProcessor,
        users: Iterable[UserRequest],
        step: Callable[[], None],
        finish: Callable[[Sequence[int]], None],
    ) -> None:
        """step: takes one for all requests. finish: ends samples in the core."""
        self._outputs, self._step, self._finish = outputs, step, finish
        self._unfinished = list(users)

    def __iter__(self) -> "RowStream":
        return self

    def __next__(self) -> list[RequestOutput]:
        while self._unfinished:
            news = [self._outputs.take(user) for user in self._unfinished if user.has_news]
            self._unfinished = [user for user in self._unfinished if not user.is_finished]
            outputs = [output for output in news if output is not None]
            if outputs:
                return outputs
            self._step()
        raise StopIteration

    def close(self) -> None:
        """Aborts what is unfinished. Idempotent."""
        unfinished, self._unfinished = self._unfinished, []
        for user in unfinished:
            self._finish(self._outputs.remove(user))

    def __enter__(self) -> "RowStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class LLM:
    """Generates text for batches of (prompt, adapter) pairs.

    model: a Hugging Face folder, a hub id or a .gguf file. adapters: name -> PEFT folder or hub id, loaded at once.
    Other options are those of EngineConfig. What has left the host cache is read again in the caller's thread, before
    anything runs. Raises EngineStartError, AdapterRejected, ValueError for a bad option.
    """

    def __init__(self, model: str | Path, *, adapters: Mapping[str, str | Path] | None = None, **options: Any) -> None:
        # As in vLLM, a script gives the same output each time it runs.
        self._config = engine_config(model, {"seed": 0} | options)
        start_adapters = adapter_paths(adapters)
        folder = resolve_model(self._config.model, self._config.revision)
        self._base = BaseTensorFiles(folder)
        tokenizer = load_tokenizer(folder)
        defaults = load_generation_defaults(folder, tokenizer.eos_token_id, self._config.generation_config)
        self._engine = start_engine(self._config, folder)
        self._core = self._engine.core
        self._front_end = FrontEnd(tokenizer, defaults, self._engine.facts, self._config)
        self._adapters = self._front_end.adapters
        for name, path in start_adapters.items():
            self.load_adapter(name, path)

    def close(self) -> None:
        """Ends the processes that share the model with this one, after which nothing is computed; where there are none
        nothing happens. Idempotent; they end with this object at the latest."""
        self._engine.shards.close()

    # Generation.

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: Adapter | Sequence[Adapter] = None,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
        tenant: str | Sequence[str] = "",
    ) -> list[RequestOutput]:
        """Generates for every prompt and returns the outputs in their order.

        Lists pair one to one with prompts; a single value goes with each. lora_request: the name of a loaded adapter,
        or a LoRARequest, which loads what is not loaded once nothing else is wrong; a mapping of names to scales, or a
        sequence of these inside the list, is the sum of several adapters; None is the base model. tenant: whose fair
        share of service it is served from. Raises InvalidRequest, AdapterNotFound, AdapterRejected or QueueFull before
        anything runs; a request that fails later comes back with finish_reason "error".
        """
        prepared = self._prepare(prompts, sampling_params, lora_request, priority, tenant)
        final: dict[str, RequestOutput] = {}
        progress = tqdm(total=len(prepared), desc="requests", disable=not use_tqdm)
        with progress, self._begin(prepared) as stream:
            for outputs in stream:
                for output in outputs:
                    if output.finished:
                        final[output.request_id] = output
                        progress.update()
        return [final[entry.user.request_id] for entry in prepared]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        lora_request: Adapter | Sequence[Adapter] = None,
        priority: Sequence[int] | None = None,
        add_generation_prompt: bool = True,
        tenant: str | Sequence[str] = "",
    ) -> list[RequestOutput]:
        """`generate` for conversations, put into the chat template of their adapter, or of the model where it has none.
        One conversation or a list of them."""
        prompts: list[Prompt] = [
            {"messages": conversation, "add_generation_prompt": add_generation_prompt}
            for conversation in conversations(messages)
        ]
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

        The requests are accepted at the call, which raises as `generate` does. Closing the stream, or leaving a `with`
        block around it, aborts what is unfinished.
        """
        prepared = self._prepare(prompts, sampling_params, lora_request, priority, tenant, RequestOutputKind.DELTA)
        for index, entry in enumerate(prepared):
            entry.user.request_id = str(index)
        return self._begin(prepared)

    def _begin(self, prepared: Sequence[Prepared]) -> RowStream:
        """Accepts, reads again what has to be, and gives the requests to the core."""
        self._front_end.accept(prepared)
        stream = RowStream(self._front_end.outputs, [entry.user for entry in prepared], self._step, self._finish)
        try:
            self._bring_back({digest for entry in prepared for _, digest in entry.user.adapters})
        except BaseException:
            stream.close()
            raise
        for entry in prepared:
            for request in entry.requests:
                self._core.add_request(request)
        return stream

    def _step(self) -> None:
        _, to_finish = self._front_end.outputs.process(self._core.step())
        self._finish(to_finish)

    def _finish(self, sample_ids: Sequence[int]) -> None:
        for sample_id in sample_ids:
            self._core.finish(sample_id)
        self._settle()

    def _prepare(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        lora_request: Adapter | Sequence[Adapter],
        priority: Sequence[int] | None,
        tenant: str | Sequence[str],
        kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY,
    ) -> list[Prepared]:
        batch = pair_up(prompts, sampling_params, lora_request, priority, tenant)
        calls = [self._front_end.check(call) for call in batch]
        self._front_end.check_room(calls)
        to_load = self._front_end.adapters_to_load(calls)
        for request in to_load:  # vLLM's way: a path comes with the request
            self.load_adapter(request.lora_name, request.lora_path)
        if to_load:
            calls = [self._front_end.check_again(call) for call in calls]
        prepared = [self._front_end.prepare(call) for call in calls]
        for entry in prepared:
            entry.user.output_kind = kind
        return prepared

    # Adapters.

    def load_adapter(self, name: str, path: str | Path) -> AdapterInfo:
        """Loads a PEFT folder or hub id as the active version of a name; running requests finish on what they began
        with. The least recently active versions go when there are more than `max_adapter_versions`. The info that
        comes back has a report.

        Raises AdapterRejected with everything that does not fit, AdapterTooLarge, InvalidRequest for a bad name.
        """
        self._adapters.check_name(name)
        self._adapters.check_path(path)
        folder = resolve_adapter(str(path))
        checkpoint = self._read(folder)
        image = self._pack(checkpoint)
        self._adapters.check_size(str(path), image.table.num_pages)
        self._adapters.judge_text(str(path), image.table)
        table = self._adapters.add_text(str(path), image.table)
        self._keep(image, table, Source(str(path), str(folder.absolute())))
        self._let_go(self._adapters.publish(name, str(path), table))
        return replace(self.get_adapter(name), report=report_of(checkpoint, table))

    def _read(self, folder: Path) -> Checkpoint:
        targets = adapter_targets(self._engine.model_config)
        return read_checkpoint(folder, targets, base=self._base, max_elements=self._max_elements)

    @property
    def _max_elements(self) -> int:
        """Of an adapter that the arena could hold."""
        engine = self._engine
        return max_elements(engine.facts.num_pages, engine.page_bytes, engine.dtype) * engine.shards.size

    def _pack(self, checkpoint: Checkpoint) -> AdapterImage:
        engine = self._engine
        return pack(checkpoint, engine.dtype, engine.page_bytes, engine.layout, engine.cuts)

    def _keep(self, image: AdapterImage, table: ImageTable, source: Source) -> None:
        """table: the image's, without or with its text."""
        self._core.load_adapter(table, torch.from_numpy(self._shared(image)))
        self._front_end.ledger.add(table.digest, table.num_bytes, source)

    def _shared(self, image: AdapterImage) -> np.ndarray:
        """Its pages, which the other ranks have too if there are any: then in memory that all of them map."""
        ranks = self._engine.shards
        if ranks.size == 1:
            return image.pages
        descriptor = seal(image.pages)
        try:
            ranks.load_adapter(image.table, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return map_sealed(descriptor, image.table.num_bytes).reshape(image.pages.shape)

    def _bring_back(self, digests: Iterable[str]) -> None:
        """Reads adapters that are held again where their images are gone. Raises AdapterRejected."""
        cache = self._front_end.ledger
        for digest in cache.missing(digests):
            source = cache.source_of(digest)
            try:
                checkpoint = self._read(Path(source.folder))
                if checkpoint.digest != digest:
                    raise AdapterRejected(source.folder, [f"its digest is {checkpoint.digest}"])
            except AdapterRejected as error:
                cache.num_failures += 1
                raise source.changed(digest, error.problems) from None
            image = self._pack(checkpoint)
            self._keep(image, self._adapters.table_of(digest), source)
            cache.num_reads += 1

    @contextmanager
    def _in_memory(self, digest: str) -> Iterator[None]:
        """Meanwhile an adapter's image stays in host memory, into which it is brought back first."""
        self._front_end.ledger.hold(digest)
        try:
            self._bring_back([digest])
            yield
        finally:
            self._front_end.ledger.release(digest)
            self._settle()

    def inspect_adapter(self, path: str | Path) -> AdapterReport:
        """What loading a PEFT folder or hub id would come to; loads nothing. What is wrong with it stands in the
        report. Raises InvalidRequest for what is no path."""
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
        return self._adapters.check_report(report)

    def activate_adapter(self, name: str, version: int) -> AdapterInfo:
        """Makes a name mean a version that is kept, such as the one before. Raises AdapterNotFound, AdapterRejected for
        one that had to be read again and is no longer what was loaded."""
        with self._in_memory(self._adapters.resolve(f"{name}@{version}")):  # what cannot be had is not activated
            self._let_go(self._adapters.activate(name, version))
        return self.get_adapter(name)

    def warm_adapter(self, name: str) -> AdapterInfo:
        """Makes an adapter resident in the arena, where it may be evicted again. Raises AdapterTooLarge when running
        requests leave no room now."""
        digest = self._adapters.resolve(name)
        with self._in_memory(digest):
            if not self._core.warm_adapter(digest):
                raise AdapterTooLarge(f"there is no room now to warm adapter {name!r}")
            while self._core.has_work and not self._core.adapter_state(digest).is_resident:
                self._step()
        return self.get_adapter(name)

    def unload_adapter(self, name: str, *, abort: bool = False) -> AdapterInfo:
        """New requests for the name are refused from now on; running ones finish, or are aborted, then the weights are
        freed. "name@2" takes one version away; the active one of several is not, which raises InvalidRequest."""
        info = self.get_adapter(name)
        digests = self._adapters.withdraw(name)
        for user in self._front_end.outputs.users_of(info.name, digests) if abort else ():
            self._finish(self._front_end.outputs.fail(user, FinishReason.ABORT))
        self._let_go(digests)
        return info

    def _let_go(self, digests: Iterable[str]) -> None:
        """Adapters have lost a name: with the last one they go, with the last pinned one they may be evicted."""
        for digest in digests:
            if not self._adapters.is_published(digest):
                self._core.unload_adapter(digest)
            elif not self._adapters.is_pinned(digest):
                self._unpin(digest)
        self._settle()

    def _unpin(self, digest: str) -> None:
        self._core.unpin_adapter(digest)
        self._front_end.ledger.note_unpinned()

    def _settle(self) -> None:
        """After something may have let go of adapters: what the core has freed is forgotten, idle images beyond the
        limit go."""
        for digest in self._core.take_unloaded():
            self._adapters.forget(digest)
            self._front_end.ledger.forget(digest)
        for digest in self._front_end.ledger.take_excess(self._adapters.is_pinned):
            self._core.drop_image(digest)

    def pin_adapter(self, name: str, pinned: bool = True) -> AdapterInfo:
        """Keeps an adapter resident in the arena. Raises AdapterTooLarge when running requests leave no room now."""
        digest = self._adapters.resolve(name)
        with self._in_memory(digest) if pinned else nullcontext():
            if pinned and not self._core.pin_adapter(digest):
                raise AdapterTooLarge(f"there is no room now to pin adapter {name!r}")
            self._adapters.set_pinned(name, pinned)
        if not self._adapters.is_pinned(digest):
            self._unpin(digest)
        self._settle()
        return self.get_adapter(name)

    def get_adapter(self, name: str) -> AdapterInfo:
        """name: "name", which tells of its active version, or "name@2". Raises AdapterNotFound."""
        return self._describe(self._adapters.named(name))

    def list_adapters(self) -> list[AdapterInfo]:
        return [self._describe(adapter) for adapter in self._adapters.all()]

    def _describe(self, adapter: NamedAdapter) -> AdapterInfo:
        digest = adapter.table.digest
        return self._adapters.describe(adapter, self._core.adapter_state(digest), digest in self._front_end.ledger)

    # Facts.

    def get_tokenizer(self, lora_request: Adapter = None) -> Tokenizer:
        """What prompts for these adapters, which have to be loaded, are encoded with."""
        return self._front_end.tokenizer_of(lora_request)

    def get_default_sampling_params(self) -> SamplingParams:
        return self._front_end.defaults.sampling

    def get_info(self) -> EngineInfo:
        """Facts of the engine, its load, and its counts."""
        engine = self._engine
        return engine_info(self._config, engine.dtype, engine.page_bytes, self._core.load, self._front_end)

    def check_integrity(self) -> None:
        """Raises RuntimeError when a page, a table, an image or a reference has no owner, or more than one."""
        self._core.check_integrity()
        uses = [digest for user in self._front_end.outputs.users() for _, digest in user.adapters]
        self._front_end.ledger.check_integrity(uses, self._core.images())
        self._adapters.check_integrity(self._front_end.ledger.digests())

    def check_idle(self) -> None:
        """Raises RuntimeError unless, with no request unfinished, everything but pinned adapters is given back."""
        self.check_integrity()
        self._core.check_idle()
        if self._front_end.outputs.num_unfinished:
            raise RuntimeError(f"{self._front_end.outputs.num_unfinished} samples are waited for and not computed")
