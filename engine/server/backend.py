"""What the server asks of the engine, as a type: AsyncLLM is one, the tests' fake is another.

Every method but `drain` and `shutdown` may raise EngineUnavailable; `generate` raises what is wrong with a request at
the first step of its iteration. Knows no wire.
"""

from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Protocol

from blora.scheduler import SamplingParams

from ..outputs import AdapterInfo, EngineInfo, LoRARequest, RequestOutput


class ChatTokenizer(Protocol):
    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Raises InvalidRequest when the model has no template, or its template refuses the messages."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


class Backend(Protocol):
    @property
    def is_serving(self) -> bool: ...

    def on_serving_change(self, callback: Callable[[bool], None]) -> None: ...

    async def start(self) -> None: ...

    async def drain(self) -> None: ...

    async def shutdown(self) -> None: ...

    def generate(
        self,
        prompt: str | list[int] | dict[str, Any],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: LoRARequest | str | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]: ...

    async def abort(self, request_id: str | Iterable[str]) -> None: ...

    def default_sampling_params(self) -> SamplingParams: ...

    def get_tokenizer(self) -> ChatTokenizer: ...

    async def load_adapter(self, name: str, path: str, *, pinned: bool = False) -> AdapterInfo: ...

    async def unload_adapter(self, name: str) -> AdapterInfo: ...

    async def pin_adapter(self, name: str, pinned: bool = True) -> AdapterInfo: ...

    async def list_adapters(self) -> list[AdapterInfo]: ...

    async def get_adapter(self, name: str) -> AdapterInfo: ...

    async def get_info(self) -> EngineInfo: ...
