"""TargetSpec: which server a load goes to, as plain data that a process of the generator opens its target from."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from ..driver import Target
from .blora import BloraTarget

BACKENDS = ("blora", "openai", "openai-chat", "in-process")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """address: HOST:PORT of gRPC, a URL of HTTP, or for `in-process` the model's folder."""

    backend: str
    address: str
    model: str = ""  # of HTTP requests without an adapter
    endpoint: str | None = None
    api_key: str | None = None
    connections: int = 1  # of gRPC, by process
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)  # options of the engine in process

    def open(self) -> AbstractAsyncContextManager[Target]:
        """Returns the target, to be used with `async with`. Raises ValueError for an unknown backend."""
        if self.backend == "blora":
            return BloraTarget(self.address, self.connections)
        if self.backend in ("openai", "openai-chat"):
            from .openai import CHAT, COMPLETIONS, OpenAITarget  # imports aiohttp

            endpoint = self.endpoint or (CHAT if self.backend == "openai-chat" else COMPLETIONS)
            return OpenAITarget(
                self.address, self.model, endpoint=endpoint, api_key=self.api_key, extra_body=self.extra_body
            )
        if self.backend == "in-process":
            from .in_process import InProcessTarget  # imports the engine, and torch

            return InProcessTarget(self.address, self.engine)
        raise ValueError(f"no backend is named {self.backend!r}; there are {', '.join(BACKENDS)}")
