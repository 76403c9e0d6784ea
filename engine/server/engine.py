"""Backend: the interface of an engine that the server uses. AsyncLLM implements it, and so does the tests' fake.

Every method but `drain` and `shutdown` may raise EngineUnavailable. `generate` raises the errors of a request at the
first step of its iteration. Knows no wire.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from blora.adapters.report import AdapterReport
from blora.scheduler import SamplingParams

from ..adapter_store.upload import UploadedFile
from ..front_end.adapter_choice import Adapter
from ..front_end.output_processor import UserRequest
from ..front_end.statistics import Statistics
from ..identity.tenant import Tenant
from ..outputs import AdapterEvent, AdapterInfo, AdapterSnapshot, EngineInfo, LoadSnapshot, RequestOutput, Tokens
from ..text.user_tokenizer import UserTokenizer


class ServedEngine(Protocol):
    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together; known before the engine starts. Raises EngineStartError."""

    def most_listed(self) -> Mapping[str, int]:
        """The most entries that each list of a request may have, by the name of its field."""

    @property
    def is_serving(self) -> bool: ...

    def on_serving_change(self, callback: Callable[[bool], None]) -> None: ...

    def on_request_end(self, callback: Callable[[UserRequest], None]) -> None:
        """Calls back with each request that has ended."""

    async def start(self) -> None: ...

    async def drain(self, timeout: float | None = None) -> None:
        """Refuses new requests; returns when the running ones are finished, or were ended because the timeout has
        passed."""

    async def shutdown(self, timeout: float | None = None) -> None:
        """timeout: seconds for child processes to end by themselves; None leaves it to the engine."""

    def generate(
        self,
        prompt: str | list[int] | dict[str, Any],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: Adapter = None,
        priority: int = 0,
        tenant: str | Tenant = "",
        deadline: float | None = None,
        first_token_deadline: float | None = None,
    ) -> AsyncGenerator[RequestOutput, None]: ...

    def stream(
        self,
        prompts: Sequence[Any],
        sampling_params: SamplingParams,
        lora_request: Sequence[Adapter],
        priority: Sequence[int],
        tenant: str | Tenant,
        *,
        request_id: str | None = None,
        deadline: float | None = None,
    ) -> AsyncGenerator[list[RequestOutput], None]:
        """Generates for several prompts, all or none. The request_id of an output is the index of its prompt."""

    def get_tokenizer(self, lora_request: Adapter = None) -> UserTokenizer: ...

    async def abort(self, request_id: str | Iterable[str], *, tenant: str | None = None) -> None: ...

    async def share_prompts(self, texts: Sequence[str]) -> None: ...

    async def tokenize(
        self,
        prompt: str | list[int] | dict[str, Any],
        *,
        lora_request: Adapter = None,
        add_special_tokens: bool = True,
        with_texts: bool = False,
        tenant: str | Tenant = "",
    ) -> Tokens: ...

    async def detokenize(
        self, token_ids: Sequence[int], *, lora_request: Adapter = None, skip_special_tokens: bool = False
    ) -> str: ...

    def watch_load(self, most_per_second: float = 1.0) -> AsyncGenerator[LoadSnapshot, None]: ...

    def get_default_sampling_params(self) -> SamplingParams: ...

    # owner: the tenant for which an adapter is changed, which may change only its own; None may change all.

    async def load_adapter(
        self, name: str, path: str, *, pinned: bool = False, owner: Tenant | None = None
    ) -> AdapterInfo:
        """Loads an adapter; the result has a report."""

    async def upload_adapter(
        self,
        name: str,
        files: Sequence[UploadedFile],
        chunks: AsyncIterable[bytes],
        *,
        pinned: bool = False,
        owner: Tenant | None = None,
    ) -> AdapterInfo:
        """Loads an adapter from uploaded files; the result has a report."""

    async def inspect_adapter(self, path: str) -> AdapterReport: ...

    async def activate_adapter(self, name: str, version: int, *, owner: Tenant | None = None) -> AdapterInfo: ...

    async def warm_adapter(self, name: str, *, owner: Tenant | None = None) -> AdapterInfo: ...

    async def unload_adapter(self, name: str, *, abort: bool = False, owner: Tenant | None = None) -> AdapterInfo: ...

    def watch_adapters(self) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]: ...

    async def pin_adapter(self, name: str, pinned: bool = True, *, owner: Tenant | None = None) -> AdapterInfo: ...

    async def list_adapters(self) -> list[AdapterInfo]: ...

    async def get_adapter(self, name: str) -> AdapterInfo: ...

    async def get_info(self) -> EngineInfo: ...

    async def get_statistics(self) -> Statistics:
        """What metrics are made of; also while there is no engine process."""
