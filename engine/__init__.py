"""The engine: puts scheduler, adapters and wire together. Only tests and bench import it.

A public name is imported when it is first used, because the front-end process must not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blora.scheduler import RequestOutputKind, SamplingParams

    from .async_llm import AsyncLLM
    from .errors import (
        AdapterNotFound,
        AdapterRejected,
        AdapterTooLarge,
        EngineStartError,
        EngineUnavailable,
        InvalidRequest,
        QueueFull,
    )
    from .llm import LLM
    from .outputs import AdapterInfo, CompletionOutput, EngineInfo, Logprob, LoRARequest, RequestOutput

_HOMES = {
    "LLM": ".llm",
    "AsyncLLM": ".async_llm",
    "RequestOutputKind": "blora.scheduler",
    "SamplingParams": "blora.scheduler",
    **dict.fromkeys(
        ("AdapterInfo", "CompletionOutput", "EngineInfo", "LoRARequest", "Logprob", "RequestOutput"), ".outputs"
    ),
    **dict.fromkeys(
        (
            "AdapterNotFound",
            "AdapterRejected",
            "AdapterTooLarge",
            "EngineStartError",
            "EngineUnavailable",
            "InvalidRequest",
            "QueueFull",
        ),
        ".errors",
    ),
}

__all__ = [
    "LLM",
    "AdapterInfo",
    "AdapterNotFound",
    "AdapterRejected",
    "AdapterTooLarge",
    "AsyncLLM",
    "CompletionOutput",
    "EngineInfo",
    "EngineStartError",
    "EngineUnavailable",
    "InvalidRequest",
    "LoRARequest",
    "Logprob",
    "QueueFull",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
