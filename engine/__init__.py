"""The engine: puts scheduler, adapters and wire together. Only tests and bench import it.

A public name is imported when it is first used, because the front-end process must not import torch. Every type that a
public signature names is a public name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blora.adapters import AdapterReport, AdapterText, AddedToken, LayerReport, ModuleReport
    from blora.scheduler import RequestOutputKind, SamplingParams, StructuredOutputsParams

    from .adapter_store.upload import UploadedFile
    from .arguments.engine_args import AsyncEngineArgs, EngineArgs
    from .arguments.parser import FlexibleArgumentParser
    from .async_llm import AsyncLLM, AsyncLLMEngine
    from .config import EngineConfig
    from .errors import (
        AdapterError,
        AdapterNotFound,
        AdapterRejected,
        AdapterSetAside,
        AdapterTooLarge,
        DeadlineExceeded,
        EngineBroken,
        EngineFault,
        EngineStartError,
        EngineUnavailable,
        InvalidRequest,
        LimitReached,
        MessageTooLarge,
        PermissionDenied,
        QueueFull,
        ReaderTooSlow,
        Unauthenticated,
        WrongEventLoop,
        WrongProcess,
    )
    from .front_end.adapter_choice import Adapter
    from .front_end.calls import Conversation, Prompt, TextPrompt, TokenArray, TokensPrompt
    from .identity.tenant import Quotas, Tenant
    from .llm import LLM, LLMEngine
    from .metrics import Counter, Gauge, Metric
    from .model_files.config import UnsupportedModel
    from .outputs import (
        AdapterEvent,
        AdapterInfo,
        AdapterSnapshot,
        AdapterUsage,
        AdapterVersion,
        CompletionOutput,
        EngineInfo,
        LoadSnapshot,
        Logprob,
        LoRARequest,
        LoRAUse,
        PromptLogprobs,
        RequestMetrics,
        RequestOutput,
        SampleLogprobs,
        Tokens,
    )
    from .requests.row_stream import RowStream
    from .text.chat import Chat, Message
    from .text.token_stream import TokenStream
    from .text.tokenizer import Tokenizer
    from .text.user_tokenizer import TokenizedText, UserTokenizer

# Module -> its public names.
_NAMES = {
    "blora.adapters": ("AdapterReport", "AdapterText", "AddedToken", "LayerReport", "ModuleReport"),
    "blora.scheduler": ("RequestOutputKind", "SamplingParams", "StructuredOutputsParams"),
    ".adapter_store.upload": ("UploadedFile",),
    ".arguments.engine_args": ("AsyncEngineArgs", "EngineArgs"),
    ".arguments.parser": ("FlexibleArgumentParser",),
    ".async_llm": ("AsyncLLM", "AsyncLLMEngine"),
    ".config": ("EngineConfig",),
    ".errors": (
        "AdapterError",
        "AdapterNotFound",
        "AdapterRejected",
        "AdapterSetAside",
        "AdapterTooLarge",
        "DeadlineExceeded",
        "EngineBroken",
        "EngineFault",
        "EngineStartError",
        "EngineUnavailable",
        "InvalidRequest",
        "LimitReached",
        "MessageTooLarge",
        "PermissionDenied",
        "QueueFull",
        "ReaderTooSlow",
        "Unauthenticated",
        "WrongEventLoop",
        "WrongProcess",
    ),
    ".front_end.adapter_choice": ("Adapter",),
    ".front_end.calls": ("Conversation", "Prompt", "TextPrompt", "TokenArray", "TokensPrompt"),
    ".identity.tenant": ("Quotas", "Tenant"),
    ".llm": ("LLM", "LLMEngine"),
    ".metrics": ("Counter", "Gauge", "Metric"),
    ".model_files.config": ("UnsupportedModel",),
    ".outputs": (
        "AdapterEvent",
        "AdapterInfo",
        "AdapterSnapshot",
        "AdapterUsage",
        "AdapterVersion",
        "CompletionOutput",
        "EngineInfo",
        "LoRARequest",
        "LoRAUse",
        "LoadSnapshot",
        "Logprob",
        "PromptLogprobs",
        "RequestMetrics",
        "RequestOutput",
        "SampleLogprobs",
        "Tokens",
    ),
    ".text.chat": ("Chat", "Message"),
    ".text.token_stream": ("TokenStream",),
    ".requests.row_stream": ("RowStream",),
    ".text.tokenizer": ("Tokenizer",),
    ".text.user_tokenizer": ("TokenizedText", "UserTokenizer"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "LLM",
    "Adapter",
    "AdapterError",
    "AdapterEvent",
    "AdapterInfo",
    "AdapterNotFound",
    "AdapterRejected",
    "AdapterReport",
    "AdapterSetAside",
    "AdapterSnapshot",
    "AdapterText",
    "AdapterTooLarge",
    "AdapterUsage",
    "AdapterVersion",
    "AddedToken",
    "AsyncEngineArgs",
    "AsyncLLM",
    "AsyncLLMEngine",
    "Chat",
    "CompletionOutput",
    "Conversation",
    "Counter",
    "DeadlineExceeded",
    "EngineArgs",
    "EngineBroken",
    "EngineConfig",
    "EngineFault",
    "EngineInfo",
    "EngineStartError",
    "EngineUnavailable",
    "FlexibleArgumentParser",
    "Gauge",
    "InvalidRequest",
    "LLMEngine",
    "LayerReport",
    "LimitReached",
    "LoRARequest",
    "LoRAUse",
    "LoadSnapshot",
    "Logprob",
    "Message",
    "MessageTooLarge",
    "Metric",
    "ModuleReport",
    "PermissionDenied",
    "Prompt",
    "PromptLogprobs",
    "QueueFull",
    "Quotas",
    "ReaderTooSlow",
    "RequestMetrics",
    "RequestOutput",
    "RequestOutputKind",
    "RowStream",
    "SampleLogprobs",
    "SamplingParams",
    "StructuredOutputsParams",
    "Tenant",
    "TextPrompt",
    "TokenArray",
    "TokenStream",
    "TokenizedText",
    "Tokenizer",
    "Tokens",
    "TokensPrompt",
    "Unauthenticated",
    "UnsupportedModel",
    "UploadedFile",
    "UserTokenizer",
    "WrongEventLoop",
    "WrongProcess",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
