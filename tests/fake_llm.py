"""FakeLLM: an engine without a model. It echoes: each sample of a prompt returns the prompt's own tokens, one at a
time."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import httpx

from blora.adapters.report import AdapterReport, LayerReport, ModuleReport
from blora.engine.adapter_store.upload import UploadedFile
from blora.engine.errors import AdapterNotFound, EngineUnavailable, InvalidRequest, PermissionDenied
from blora.engine.facts import Facts
from blora.engine.front_end.adapter_choice import read_adapters
from blora.engine.front_end.observations import Observations
from blora.engine.front_end.outcomes import Outcomes
from blora.engine.front_end.statistics import AdapterPlaces, Deaths, QueuePlaces, Statistics
from blora.engine.front_end.validator import Limits, most_listed
from blora.engine.identity.tenant import Tenant
from blora.engine.outputs import (
    AdapterEvent,
    AdapterInfo,
    AdapterSnapshot,
    AdapterUsage,
    AdapterVersion,
    CompletionOutput,
    EngineInfo,
    LoadSnapshot,
    Logprob,
    RequestOutput,
    Tokens,
)
from blora.engine.server.access import OPEN, Access
from blora.engine.server.engine import ServedEngine
from blora.engine.server.http.options import HttpOptions
from blora.engine.server.server import Server
from blora.engine.server.times import DEFAULTS, ServerTimes
from blora.proto.client import Client
from blora.scheduler import RequestOutputKind, SamplingParams

T = TypeVar("T")

INFO = EngineInfo(
    model="fake", dtype="float32", vocab_size=1 << 17, max_model_len=64, block_size=16, num_pages=8, page_bytes=4096,
    num_free_pages=5, num_running=1, num_waiting=2, version="0", max_host_bytes=1 << 33,
)  # fmt: skip


REPORT = AdapterReport(
    path="/adapters/some", warnings=("all weights are zero",), kind="LoRA", digest="ab" * 32,
    modules=(ModuleReport("model.layers.0.mlp.up_proj", 4, 2.0, 0.5),), layers=(LayerReport("model.layers.0", 0.5),),
    applied_tensors=("a", "b"), ignored_tensors=("c",), num_disk_bytes=1 << 33, num_host_bytes=1 << 34,
    num_device_bytes=1 << 35, num_pages=7,
)  # fmt: skip


LOAD = LoadSnapshot(
    is_serving=True, num_running=1, num_waiting=2, num_queued_tokens=3, num_refused=4, num_pages=8, num_free_pages=5,
    resident_adapters=("alice@2", "bob@1"), num_requests=6, num_generated_tokens=7, num_prompt_tokens=9,
    num_cached_tokens=3, num_preemptions=8, num_engine_deaths=2, num_crashes=1,
)  # fmt: skip


def adapter_info(name: str, path: str = "/adapters/some") -> AdapterInfo:
    return AdapterInfo(
        name=name, digest="ab" * 32, path=path, ranks=(4, 8), modules=("q_proj",), num_bytes=1 << 40, num_pages=3,
        warnings=("all weights are zero",), version=2, usage=AdapterUsage(1, 2, 3, 4, 0.5, 6.0), num_copies=7,
        num_copied_bytes=1 << 41, copy_seconds=0.25,
        versions=(AdapterVersion(1, "cd" * 32, path, 1e9, False), AdapterVersion(2, "ab" * 32, path, 2e9, True)),
    )  # fmt: skip


def statistics(is_serving: bool = True) -> Statistics:
    """Of an engine that has done nothing."""
    return Statistics(
        model="fake",
        max_model_len=INFO.max_model_len,
        block_size=INFO.block_size,
        num_pages=INFO.num_pages,
        is_prefix_caching=True,
        is_serving=is_serving,
        info=INFO,
        observations=Observations(INFO.max_model_len),
        outcomes=Outcomes.none(),
        queue=QueuePlaces(num_unfinished=0, num_queued_tokens=0, num_expired=0),
        adapters=AdapterPlaces(1, 1, 1, ("alice",), (), num_fitting=2),
        deaths=Deaths(0, 0, 0, 0, 0, 0),
    )


class FakeLLM:
    def __init__(self) -> None:
        self.is_serving = True
        self.error: Exception | None = None  # the next call raises it
        self.failed_samples: set[int] = set()
        self.finish_reason = "length"
        self.stop_reason: int | str | None = None
        self.said: str | None = None  # what every sample says instead of its prompt
        self.tokenizer = FakeTokenizer()
        self.prompt_end = "<assistant>"  # of conversations
        self.requests: list[dict[str, Any]] = []  # the arguments of every `generate`
        self.closed: list[str] = []  # ids of requests whose generator was closed before its end
        self.aborted: list[str] = []
        self.aborting_tenant: str | None = None
        self.shared_prompts: list[str] = []
        self.adapters = {"alice": adapter_info("alice")}
        self.uploaded: tuple[list[UploadedFile], bytes] | None = None
        self.is_draining = False
        self.is_out_of_time = False  # the time for a drain has passed
        self.has_shut_down = False
        self.shutdown_timeout: float | None = None
        self.num_tokens_before_pause: int | None = None  # a request with so many tokens waits for `resume`
        self.resume = asyncio.Event()
        self._callbacks: list[Callable[[bool], None]] = []
        self._num_running = 0

    # Limits.

    max_model_len = 1 << 17

    def most_listed(self) -> Mapping[str, int]:
        return most_listed(Facts(INFO.vocab_size, self.max_model_len, 16, 8), Limits())

    # Life.

    async def start(self) -> None:
        self._raise()
        self.is_serving = True

    async def drain(self, timeout: float | None = None) -> None:
        self.is_draining = True
        try:
            async with asyncio.timeout(timeout):
                while self._num_running:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            self.is_out_of_time = True
            self.resume.set()

    async def shutdown(self, timeout: float | None = None) -> None:
        self.has_shut_down, self.shutdown_timeout = True, timeout

    def on_serving_change(self, callback: Callable[[bool], None]) -> None:
        self._callbacks.append(callback)

    def on_request_end(self, callback: Callable[[Any], None]) -> None:
        pass

    def set_serving(self, is_serving: bool) -> None:
        self.is_serving = is_serving
        for callback in self._callbacks:
            callback(is_serving)

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error
        if self.is_draining:
            raise EngineUnavailable("the engine is draining")

    # Generation.

    def get_default_sampling_params(self) -> SamplingParams:
        return SamplingParams(temperature=0.6, top_k=20)

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: Any = None,
        priority: int = 0,
        tenant: str | Tenant = "",
        deadline: float | None = None,
        first_token_deadline: float | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        assert sampling_params is not None and request_id is not None
        request = {"prompt": prompt, "sampling": sampling_params, "id": request_id}
        whose = {
            "priority": priority,
            "tenant": tenant if isinstance(tenant, str) else tenant.name,
            "deadline": deadline,
            "first_token": first_token_deadline,
        }
        self.requests.append(request | {"adapter": lora_request} | whose)
        self._raise()
        for adapter in read_adapters(lora_request):
            if adapter.lora_name not in self.adapters:
                raise AdapterNotFound(adapter.lora_name)
        self._num_running += 1
        is_done = False
        try:
            async for output in self._echo(_token_ids(prompt, self.prompt_end), sampling_params, request_id):
                yield output
            is_done = True
        finally:
            self._num_running -= 1
            if not is_done:
                self.closed.append(request_id)

    async def stream(
        self,
        prompts: Sequence[Any],
        sampling_params: SamplingParams,
        lora_request: Sequence[Any],
        priority: Sequence[int],
        tenant: str,
        *,
        request_id: str | None = None,
        deadline: float | None = None,
    ) -> AsyncGenerator[list[RequestOutput], None]:
        for index, prompt in enumerate(prompts):
            outputs = self.generate(
                prompt,
                sampling_params,
                request_id,
                lora_request=lora_request[index],
                priority=priority[index],
                tenant=tenant,
                deadline=deadline,
            )
            async with aclosing(outputs) as news:
                async for output in news:
                    yield [replace(output, request_id=str(index))]

    def get_tokenizer(self, lora_request: Any = None) -> Any:
        read_adapters(lora_request)
        return self.tokenizer

    async def _echo(
        self, prompt: list[int], sampling: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        said = (prompt if self.said is None else list(map(ord, self.said)))[: sampling.max_tokens]
        if sampling.output_kind is RequestOutputKind.FINAL_ONLY:
            steps, prompt_pieces = [(0, len(said))], [len(prompt)]
        else:  # the logprobs of the prompt come in two pieces
            steps, prompt_pieces = [(i, i + 1) for i in range(len(said))], [1, len(prompt) - 1]
        shown = 0
        for first, last in steps:
            if first == self.num_tokens_before_pause:
                await self.resume.wait()
                if self.is_out_of_time:
                    raise EngineUnavailable("not finished in time")
            piece = prompt_pieces.pop(0) if prompt_pieces else 0
            yield RequestOutput(
                request_id=request_id,
                prompt=None,
                prompt_token_ids=prompt,
                outputs=[self._sample(i, said, first, last, sampling) for i in range(sampling.n)],
                finished=last == len(said),
                prompt_logprobs=_prompt_logprobs(prompt, shown, shown + piece, sampling),
                num_cached_tokens=2,
            )
            shown += piece

    def _sample(self, index: int, said: list[int], first: int, last: int, sampling: SamplingParams) -> CompletionOutput:
        token_ids = said[first:last]
        output = CompletionOutput(index, "".join(map(chr, token_ids)), token_ids)
        if sampling.logprobs is not None:
            output.logprobs = [
                {7: Logprob(-0.5, 1, "seven"), t: Logprob(-1.5, 3), 9: Logprob(-1.0, 2)} for t in token_ids
            ]
            output.cumulative_logprob = -1.5 * last
        if last == len(said):
            output.finish_reason, output.stop_reason = self.finish_reason, self.stop_reason
            if index in self.failed_samples:
                output.finish_reason, output.error = "error", "the logits of this row are not finite"
        return output

    async def share_prompts(self, texts: Sequence[str]) -> None:
        self.shared_prompts = list(texts)

    async def tokenize(
        self,
        prompt: Any,
        *,
        lora_request: Any = None,
        add_special_tokens: bool = True,
        with_texts: bool = False,
        tenant: str | Tenant = "",
    ) -> Tokens:
        self._raise()
        self.requests.append({"prompt": prompt, "adapter": lora_request, "tenant": tenant})
        token_ids = ([1] if add_special_tokens else []) + _token_ids(prompt, self.prompt_end)
        return Tokens(token_ids, list(map(chr, token_ids)) if with_texts else None, INFO.max_model_len)

    async def detokenize(
        self, token_ids: Sequence[int], *, lora_request: Any = None, skip_special_tokens: bool = False
    ) -> str:
        self._raise()
        self.requests.append({"adapter": lora_request})
        return "".join(chr(token_id) for token_id in token_ids if not skip_special_tokens or token_id != 1)

    async def watch_load(self, most_per_second: float = 1.0) -> AsyncGenerator[LoadSnapshot, None]:
        self._raise()
        for num_running in (int(most_per_second), 0):
            yield replace(LOAD, num_running=num_running)
        await self.resume.wait()

    async def abort(self, request_id: str | Iterable[str], *, tenant: str | None = None) -> None:
        self._raise()
        self.aborting_tenant = tenant
        self.aborted += [request_id] if isinstance(request_id, str) else list(request_id)

    # Adapters and facts.

    def _check_owner(self, name: str, owner: Tenant | None) -> None:
        info = self.adapters.get(name)
        if owner is not None and info is not None and info.owner != owner.name:
            raise PermissionDenied("not loaded by this tenant")

    async def load_adapter(
        self, name: str, path: str, *, pinned: bool = False, owner: Tenant | None = None
    ) -> AdapterInfo:
        self._raise()
        self._check_owner(name, owner)
        loaded = replace(adapter_info(name, path), pinned=pinned, owner="" if owner is None else owner.name)
        self.adapters[name] = loaded
        return replace(self.adapters[name], report=REPORT)

    async def upload_adapter(
        self,
        name: str,
        files: Sequence[UploadedFile],
        chunks: AsyncIterable[bytes],
        *,
        pinned: bool = False,
        owner: Tenant | None = None,
    ) -> AdapterInfo:
        self._raise()
        self.uploaded = (list(files), b"".join([chunk async for chunk in chunks]))
        return await self.load_adapter(name, f"upload:{name}", pinned=pinned, owner=owner)

    async def inspect_adapter(self, path: str) -> AdapterReport:
        self._raise()
        return REPORT if path == REPORT.path else AdapterReport(path, ("a tensor is missing", "so is another"))

    async def activate_adapter(self, name: str, version: int, *, owner: Tenant | None = None) -> AdapterInfo:
        self._check_owner(name, owner)
        self.adapters[name] = replace(await self.get_adapter(name), version=version)
        return self.adapters[name]

    async def warm_adapter(self, name: str, *, owner: Tenant | None = None) -> AdapterInfo:
        self._check_owner(name, owner)
        self.adapters[name] = replace(await self.get_adapter(name), resident=True)
        return self.adapters[name]

    async def watch_adapters(self) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]:
        yield AdapterSnapshot(6, tuple(await self.list_adapters()))
        kinds = ("removed", "resident", "evicted", "pinned", "unpinned")
        for revision, kind in enumerate(kinds, start=7):
            yield AdapterEvent(revision, kind, "alice", 2, "ab" * 32)
        await self.resume.wait()

    async def unload_adapter(self, name: str, *, abort: bool = False, owner: Tenant | None = None) -> AdapterInfo:
        self._check_owner(name, owner)
        info = replace(await self.get_adapter(name), num_requests=0 if abort else 3)
        del self.adapters[name]
        return info

    async def pin_adapter(self, name: str, pinned: bool = True, *, owner: Tenant | None = None) -> AdapterInfo:
        self._check_owner(name, owner)
        self.adapters[name] = replace(await self.get_adapter(name), pinned=pinned)
        return self.adapters[name]

    async def list_adapters(self) -> list[AdapterInfo]:
        self._raise()
        return list(self.adapters.values())

    async def get_adapter(self, name: str) -> AdapterInfo:
        self._raise()
        if name not in self.adapters:
            raise AdapterNotFound(name)
        return self.adapters[name]

    async def get_info(self) -> EngineInfo:
        self._raise()
        return INFO

    async def get_statistics(self) -> Statistics:
        return statistics(self.is_serving)


class FakeTokenizer:
    """A token is the number of its character."""

    chat_template = ""
    all_special_tokens = ("</s>", "[TOOL_CALLS]")

    def get_chat_template(self, **_: Any) -> str:
        return self.chat_template

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))


def _token_ids(prompt: Any, end: str) -> list[int]:
    if "messages" in prompt:
        return _encode_chat(prompt["messages"], end)
    return list(prompt["prompt_token_ids"]) if "prompt_token_ids" in prompt else [ord(c) for c in prompt["prompt"]]


def _encode_chat(messages: Sequence[Mapping[str, str]], end: str) -> list[int]:
    if messages[0]["role"] == "refused":
        raise InvalidRequest("messages", "the chat template refuses them")
    text = "".join(f"<{message['role']}>{message['content']}" for message in messages) + end
    return [ord(character) for character in text]


def _prompt_logprobs(prompt: list[int], first: int, last: int, sampling: SamplingParams) -> Any:
    if sampling.prompt_logprobs is None:
        return None
    return [{prompt[i]: Logprob(-0.25 * i, 1)} if i else None for i in range(first, last)]


@asynccontextmanager
async def running(
    llm: ServedEngine,
    times: ServerTimes = DEFAULTS,
    access: Access = OPEN,
    http: HttpOptions | None = None,
) -> AsyncIterator[Server]:
    """A real server on a free port, ready to serve."""
    server = Server(llm, "127.0.0.1", 0, times, access, http)
    await server.start()
    await server.follow_backend()
    try:
        yield server
    finally:
        await server.stop()


HTTP = HttpOptions(host="127.0.0.1", port=0, model="/models/fake", model_names=["fake"])


@asynccontextmanager
async def running_http(
    llm: ServedEngine, options: HttpOptions = HTTP, times: ServerTimes = DEFAULTS, access: Access = OPEN
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server on a free port."""
    async with (
        running(llm, times, access, options) as server,
        httpx.AsyncClient(base_url=server.addresses[1]) as client,
    ):
        yield client


def ask(question: Callable[[Client], T], llm: FakeLLM | None = None) -> T:
    """Calls a real server around the fake by a synchronous client; returns the client's result."""

    async def conversation() -> T:
        async with running(llm or FakeLLM()) as server:
            return await asyncio.to_thread(_with_client, question, server.address)

    return asyncio.run(conversation())


def _with_client(question: Callable[[Client], T], target: str) -> T:
    with Client(target, timeout=100) as client:
        return question(client)


def run(body: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(body, 100))
