"""The flags of options: one for each field of EngineArgs, and of other classes whose fields say what they mean.

Options with a meaning here have a help text. Those without take whatever value vLLM gives them, and no help text shows
them: there are two hundred.
"""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import Field
from types import MappingProxyType, UnionType
from typing import Any, get_args, get_origin

from blora.scheduler import POLICIES

from ..config import BACKENDS, DTYPES, KV_CACHE_DTYPES, STEP_BUDGETS
from . import flag_types
from .meaning import default_of

MIB = 1 << 20

# vLLM's short forms.
SHORT = {
    "tensor_parallel_size": "-tp",
    "pipeline_parallel_size": "-pp",
    "data_parallel_size": "-dp",
    "enable_expert_parallel": "-ep",
    "optimization_level": "-O",
    "compilation_config": "-cc",
    "attention_config": "-ac",
    "quantization": "-q",
}

TOKENS: dict[str, Any] = {"type": flag_types.tokens, "metavar": "TOKENS"}
NUMBER: dict[str, Any] = {"type": flag_types.count, "metavar": "N"}
SECONDS: dict[str, Any] = {"type": flag_types.seconds, "metavar": "SECONDS"}
SIZE: dict[str, Any] = {"type": flag_types.memory, "metavar": "SIZE"}
WEIGHTS: dict[str, Any] = {"type": flag_types.weights, "metavar": "NAME=W,..."}
SWITCH: dict[str, Any] = {"action": argparse.BooleanOptionalAction}

# Option -> the arguments of its flag.
SHOWN: dict[str, dict[str, Any]] = {
    "model": {"help": "Hugging Face folder, hub id or .gguf file"},
    "backend": {"choices": BACKENDS, "help": "kernels to use; auto takes the first that works"},
    "dtype": {
        "choices": (*DTYPES, "half", "float"),
        "help": "data type of the model, KV and adapters (default: the model's, or float32 for float16 on the CPU)",
    },
    "kv_cache_dtype": {
        "choices": KV_CACHE_DTYPES,
        "help": "data type of KV alone; fp8 halves its bytes, on CUDA only",
    },
    "memory": SIZE
    | {
        "help": "memory for KV and adapters: bytes, a size such as 2GiB or 512M, or a fraction of free memory as 0.5 "
        "(default: 0.5, on a GPU 0.9)"
    },
    "host_cache": SIZE
    | {"help": "host memory for idle adapters, given as --memory is; adapters beyond it are read again when needed"},
    "block_size": TOKENS | {"help": "tokens in a block of the KV cache"},
    "max_model_len": TOKENS | {"help": "tokens of prompt and output together (default: those of the model)"},
    "adapter_copy_bytes": {
        "type": flag_types.size,
        "metavar": "SIZE",
        "help": "bytes of adapters copied into the arena between two steps, at most",
    },
    "max_num_seqs": NUMBER | {"help": "requests that run at once"},
    "max_num_batched_tokens": TOKENS | {"help": "tokens in one step"},
    "step_budget": {
        "choices": STEP_BUDGETS,
        "help": "what limits the prompts in a step beside --max-num-batched-tokens: time, so that decoding rows keep "
        "their pace, or tokens alone; auto is time for the native CPU kernels",
    },
    "target_itl": {
        "type": flag_types.seconds,
        "metavar": "SECONDS",
        "help": "time from one token of a request to the next that steps keep to (default: twice the time of their "
        "decoding rows)",
    },
    "max_num_queued_reqs": NUMBER | {"help": "unfinished requests; the server refuses more"},
    "max_num_queued_tokens": TOKENS
    | {"help": "tokens of prompts that wait for their first token; the server refuses more"},
    "max_queue_seconds": SECONDS
    | {"help": "seconds that a request may be predicted to wait; the server refuses it otherwise"},
    "max_tenants": NUMBER | {"help": "tenants that have requests at a time; further ones count as one"},
    "max_adapter_versions": NUMBER | {"help": "versions to keep under each name, the active one included"},
    "max_logprobs": {
        "type": int,
        "metavar": "N",
        "help": "alternatives that a request may have reported for each token; -1 sets no limit",
    },
    "max_n": NUMBER | {"help": "samples of one prompt that a request may ask for"},
    "max_stops": NUMBER | {"help": "stop strings that a request may have, and as many stop tokens"},
    "scheduling_policy": {
        "choices": POLICIES,
        "help": "order of requests: fair, by priority and then fair shares; fcfs, by arrival; priority",
    },
    "tenant_weights": WEIGHTS
    | {
        "help": "weights of tenants in fair shares; the metadata x-tenant-id of a request names its tenant (default: 1)"
    },
    "adapter_weights": WEIGHTS | {"help": "weights of adapters within their tenant's share (default: 1 each)"},
    "max_passed_over": TOKENS
    | {"help": "starvation bound: a waiting request goes first once others have received this many tokens"},
    "stall_seconds": {
        "type": float,
        "metavar": "SECONDS",
        "help": "an engine without a sign of life for so long is replaced; a step may take longer",
    },
    "enable_prefix_caching": SWITCH | {"help": "share the KV of equal prefixes between requests"},
    "enforce_eager": SWITCH | {"help": "capture no CUDA graphs"},
    "seed": {"type": int, "help": "seed of requests without one (default: a new one for each)"},
    "tensor_parallel_size": NUMBER | {"help": "processes that share the model; each computes a part of it"},
    "threads": NUMBER | {"help": "compute threads of all processes together (default: one for each core)"},
    "revision": {"help": "revision of a model from the hub (default: the newest)"},
    "generation_config": {
        "choices": ("auto", "vllm"),
        "help": "sampling defaults: those of the model's generation_config.json, or vLLM's neutral ones",
    },
}


def add_flags(
    parser: Any,
    options: Iterable["Field[Any]"],
    *,
    with_defaults: bool = True,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Adds a flag for each option to a parser or to a group of one; returns it. with_defaults: False leaves a value
    that is not given None. defaults: those that the help texts tell in place of the options' own."""
    for option in options:
        names = [f"--{option.name.replace('_', '-')}", *([SHORT[option.name]] if option.name in SHORT else [])]
        arguments = SHOWN.get(option.name) or {"help": argparse.SUPPRESS} | _taking(option.type)
        text = _with_default(arguments["help"], defaults.get(option.name, default_of(option)))
        value = default_of(option) if with_defaults else None
        parser.add_argument(*names, **arguments | {"default": value, "help": text})
    return parser


def _with_default(text: str, default: Any) -> str:
    """A help text that tells the default, unless it has words of its own for it."""
    if text == argparse.SUPPRESS or "(default: " in text:
        return text
    return f"{text} (default: {_shown(default)})"


def _shown(default: Any) -> str:
    if default is None or isinstance(default, bool):
        return {None: "none", True: "yes", False: "no"}[default]
    is_size = isinstance(default, int) and default and default % MIB == 0
    return f"{default // MIB}M" if is_size else f"{default:g}" if isinstance(default, float) else str(default)


def _taking(annotation: Any) -> dict[str, Any]:
    """The arguments of a flag that takes the values of a type."""
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else [annotation]
    origins = [get_origin(kind) for kind in kinds]
    if list in origins:
        return {"nargs": "+"}
    if str in kinds:
        return {}
    if dict in origins:
        return {"type": flag_types.json_object}
    if bool in kinds:
        return SWITCH
    return {"type": next((kind for kind in kinds if kind in (int, float)), str)}
