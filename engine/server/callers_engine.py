"""CallersEngine: the engine as one caller may use it. All doors give it their calls, so that his rights are the same
through each.

It has the methods of a ServedEngine that a call can reach, without the tenant, which is the caller's. An adapter that a
caller may not use is for him one that does not exist. What it shows of others is in `sight`.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from blora.adapters import AdapterNotFound, base_name
from blora.adapters.report import AdapterReport
from blora.scheduler import SamplingParams

from ..adapter_store.upload import UploadedFile
from ..errors import LimitReached, PermissionDenied
from ..front_end.adapter_choice import Adapter, named_in
from ..front_end.statistics import Statistics
from ..identity.caller import PRIORITIES, Caller
from ..identity.tenant import Tenant
from ..outputs import (
    AdapterEvent,
    AdapterInfo,
    AdapterSnapshot,
    EngineInfo,
    LoadSnapshot,
    LoRARequest,
    RequestOutput,
    Tokens,
)
from ..text.user_tokenizer import UserTokenizer
from .engine import ServedEngine
from .sight import Sight, facts_alone


class CallersEngine:
    def __init__(self, engine: ServedEngine, caller: Caller) -> None:
        self._engine, self._caller, self._sight = engine, caller, Sight(caller)

    # Requests.

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
        """Raises AdapterNotFound, PermissionDenied at once."""
        self._check_priority(priority)
        self._check_adapter(lora_request)
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
        """As `generate`."""
        for one in priority:
            self._check_priority(one)
        for adapter in lora_request:
            self._check_adapter(adapter)
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
        self._check_adapter(lora_request)
        return self._engine.get_tokenizer(lora_request)

    async def tokenize(
        self,
        prompt: str | list[int] | dict[str, Any],
        *,
        lora_request: Adapter = None,
        add_special_tokens: bool = True,
        with_texts: bool = False,
    ) -> Tokens:
        self._check_adapter(lora_request)
        return await self._engine.tokenize(
            prompt,
            lora_request=lora_request,
            add_special_tokens=add_special_tokens,
            with_texts=with_texts,
            tenant=self._caller.tenant,
        )

    async def detokenize(
        self, token_ids: Sequence[int], *, lora_request: Adapter = None, skip_special_tokens: bool = False
    ) -> str:
        self._check_adapter(lora_request)
        return await self._engine.detokenize(
            token_ids, lora_request=lora_request, skip_special_tokens=skip_special_tokens
        )

    def watch_load(self, most_per_second: float = 1.0) -> AsyncGenerator[LoadSnapshot, None]:
        self._check_operator("watch the load of the server")
        return self._engine.watch_load(most_per_second)

    def _check_priority(self, priority: object) -> None:
        least, most = self._caller.priorities
        if self._caller.priorities == PRIORITIES or not isinstance(priority, int):
            return  # what is no priority at all is the validator's matter
        if not least <= priority <= most:
            raise PermissionDenied(f"priority {priority} is not from {least} to {most}, which this caller may ask for")

    def _check_adapter(self, adapter: Adapter) -> None:
        for part in named_in(adapter):
            self._check_part(part)

    def _check_part(self, part: Any) -> None:
        if isinstance(part, LoRARequest) and part.lora_path:
            self._check_operator("load an adapter by its path")
        name = part.lora_name if isinstance(part, LoRARequest) else part
        if isinstance(name, str):  # other values are the validator's matter
            self._check_may_use(name)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Ends requests of the caller's tenant, or of all tenants for an operator."""
        await self._engine.abort(request_id, tenant=None if self._caller.is_operator else self._caller.tenant.name)

    # Adapters.

    async def load_adapter(self, name: str, path: str, *, pinned: bool = False) -> AdapterInfo:
        self._check_operator("load an adapter from a folder of the server or the hub")
        return await self._engine.load_adapter(name, path, pinned=pinned)

    async def upload_adapter(
        self, name: str, files: Sequence[UploadedFile], chunks: AsyncIterable[bytes], *, pinned: bool = False
    ) -> AdapterInfo:
        if not self._caller.may_upload_as(name):
            raise PermissionDenied(f"this caller may not upload an adapter as {name!r:.140}")
        self._check_upload_size(files)
        info = await self._engine.upload_adapter(name, files, chunks, pinned=pinned, owner=self._owner())
        return self._sight.of(info)

    def _check_upload_size(self, files: Sequence[UploadedFile]) -> None:
        num_bytes, most = sum(file.num_bytes for file in files), self._caller.tenant.quotas.upload_bytes
        if most is not None and num_bytes > most:
            raise LimitReached(f"the files have {num_bytes} bytes, and this tenant may upload {most} at once")

    async def inspect_adapter(self, path: str) -> AdapterReport:
        self._check_operator("inspect folders of the server")
        return await self._engine.inspect_adapter(path)

    async def activate_adapter(self, name: str, version: int) -> AdapterInfo:
        self._check_may_use(name)
        return self._sight.of(await self._engine.activate_adapter(name, version, owner=self._owner()))

    async def warm_adapter(self, name: str) -> AdapterInfo:
        self._check_may_use(name)
        return self._sight.of(await self._engine.warm_adapter(name, owner=self._owner()))

    async def unload_adapter(self, name: str, *, abort: bool = False) -> AdapterInfo:
        self._check_may_use(name)
        return self._sight.of(await self._engine.unload_adapter(name, abort=abort, owner=self._owner()))

    async def pin_adapter(self, name: str, pinned: bool = True) -> AdapterInfo:
        self._check_may_use(name)
        return self._sight.of(await self._engine.pin_adapter(name, pinned, owner=self._owner()))

    async def watch_adapters(self) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]:
        async with aclosing(self._engine.watch_adapters()) as news:
            async for item in self._sight.of_news(news):
                yield item

    async def list_adapters(self) -> list[AdapterInfo]:
        return self._sight.of_all(await self._engine.list_adapters())

    async def get_adapter(self, name: str) -> AdapterInfo:
        self._check_may_use(name)
        return self._sight.of(await self._engine.get_adapter(name))

    # Facts.

    async def get_info(self) -> EngineInfo:
        info = await self._engine.get_info()
        return info if self._caller.is_operator else facts_alone(info)

    async def get_statistics(self) -> Statistics:
        self._check_operator("see the metrics of the server")
        return await self._engine.get_statistics()

    # Rights.

    def _owner(self) -> Tenant | None:
        """For whom adapters are changed. Raises PermissionDenied: a tenant that only claims to be one owns nothing."""
        if self._caller.is_operator:
            return None
        if not self._caller.tenant.is_proven:
            raise PermissionDenied("only an operator may change adapters")
        return self._caller.tenant

    def _check_operator(self, what: str) -> None:
        if not self._caller.is_operator:
            raise PermissionDenied(f"only an operator may {what}")

    def _check_may_use(self, reference: str) -> None:
        """Raises the error of an adapter that does not exist."""
        if not self._caller.may_use(base_name(reference)):
            raise AdapterNotFound(reference)
