"""CallersEngine: the engine as one caller may use it. All doors give it their calls, so that his rights are the same
through each.

It has the methods of a ServedEngine that a call can reach, without the tenant, which is the caller's.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from typing import Any

from blora.adapters.report import AdapterReport
from blora.scheduler import SamplingParams

from ..adapter_store.upload import UploadedFile
from ..front_end.adapter_choice import Adapter
from ..identity.caller import Caller
from ..outputs import AdapterEvent, AdapterInfo, AdapterSnapshot, EngineInfo, RequestOutput
from ..text.user_tokenizer import UserTokenizer
from .engine import ServedEngine


class CallersEngine:
    def __init__(self, engine: ServedEngine, caller: Caller) -> None:
        self._engine, self._caller = engine, caller

    @property
    def max_model_len(self) -> int:
        return self._engine.max_model_len

    def most_listed(self) -> Mapping[str, int]:
        return self._engine.most_listed()

    def get_default_sampling_params(self) -> SamplingParams:
        return self._engine.get_default_sampling_params()

    def generate(
        self,
        prompt: str | list[int] | dict[str, Any],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: Adapter = None,
        priority: int = 0,
        deadline: float | None = None,
        first_token_deadline: float | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        return self._engine.generate(
            prompt,
            sampling_params,
            request_id,
            lora_request=lora_request,
            priority=priority,
            tenant=self._caller.tenant,
            deadline=deadline,
            first_token_deadline=first_token_deadline,
        )

    def stream(
        self,
        prompts: Sequence[Any],
        sampling_params: SamplingParams,
        lora_request: Sequence[Adapter],
        priority: Sequence[int],
        *,
        request_id: str | None = None,
        deadline: float | None = None,
    ) -> AsyncGenerator[list[RequestOutput], None]:
        return self._engine.stream(
            prompts,
            sampling_params,
            lora_request,
            priority,
            self._caller.tenant,
            request_id=request_id,
            deadline=deadline,
        )

    def get_tokenizer(self, lora_request: Adapter = None) -> UserTokenizer:
        return self._engine.get_tokenizer(lora_request)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        await self._engine.abort(request_id)

    async def load_adapter(self, name: str, path: str, *, pinned: bool = False) -> AdapterInfo:
        return await self._engine.load_adapter(name, path, pinned=pinned)

    async def upload_adapter(
        self, name: str, files: Sequence[UploadedFile], chunks: AsyncIterable[bytes], *, pinned: bool = False
    ) -> AdapterInfo:
        return await self._engine.upload_adapter(name, files, chunks, pinned=pinned)

    async def inspect_adapter(self, path: str) -> AdapterReport:
        return await self._engine.inspect_adapter(path)

    async def activate_adapter(self, name: str, version: int) -> AdapterInfo:
        return await self._engine.activate_adapter(name, version)

    async def warm_adapter(self, name: str) -> AdapterInfo:
        return await self._engine.warm_adapter(name)

    async def unload_adapter(self, name: str, *, abort: bool = False) -> AdapterInfo:
        return await self._engine.unload_adapter(name, abort=abort)

    async def pin_adapter(self, name: str, pinned: bool = True) -> AdapterInfo:
        return await self._engine.pin_adapter(name, pinned)

    def watch_adapters(self) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]:
        return self._engine.watch_adapters()

    async def list_adapters(self) -> list[AdapterInfo]:
        return await self._engine.list_adapters()

    async def get_adapter(self, name: str) -> AdapterInfo:
        return await self._engine.get_adapter(name)

    async def get_info(self) -> EngineInfo:
        return await self._engine.get_info()
