"""EngineConfig: the options of an engine that a user sets. Facts discovered at start-up are arguments, not config."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from blora.scheduler import POLICIES

from .kernels.instruction_sets import INSTRUCTION_SETS
from .memory.budget import parse_memory

OPTIONAL_COUNTS = ("max_model_len", "max_num_queued_tokens", "threads")
COUNTS = (
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_num_queued_reqs",
    "max_tenants",
    "adapter_copy_bytes",
    "max_passed_over",
    "max_adapter_versions",
    "max_n",
    "max_stops",
    "tensor_parallel_size",
    *OPTIONAL_COUNTS,
)
STEP_BUDGETS = ("auto", "time", "tokens")
MAX_TARGET_ITL = 60.0  # seconds; a larger number is one of milliseconds
BACKENDS = ("auto", "cpu", *INSTRUCTION_SETS, "cuda", "reference")
DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_CACHE_DTYPES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The options of one engine. A wrong value raises ValueError, which names the option.

    memory: size of the arena that KV blocks and adapters share, in each shard: an int of bytes, a text such as "2GiB",
    or a fraction, a float up to 1. A fraction counts from the memory that this process may still take beside the
    model, or from the memory left on the GPU. None is 0.5 of the former or 0.9 of the latter.
    enforce_eager: True captures no CUDA graphs; the GPU then waits for the host to launch each kernel.
    threads: compute threads of all shards together; None: one for each core that the process may use, within the
    quotas of its control groups.
    adapter_copy_bytes: the most bytes of adapters copied into the arena between two steps. While a step computes rows,
    the copies also take no more than a fifth of its time.
    max_logprobs: the most alternatives that a request may have reported for each token. As in vLLM, -1 sets no limit,
    and lets a request in process ask for the whole vocabulary with -1.
    host_cache: size of host memory for idle adapters, given as `memory` is. The engine reads an adapter beyond it again
    when a request asks for it. None sets no limit.
    scheduling_policy: "fcfs" serves in the order of arrival; "priority" serves lower priority values first; "fair" does
    too, and within a priority gives fair shares of service to tenants and to each tenant's adapters.
    step_budget: "time" also cuts prompts such that a step with decoding rows takes at most twice as long as these rows
    are predicted to take alone. "tokens" limits a step by max_num_batched_tokens only. Where answers can depend on how
    a prompt is cut, on all backends but the native CPU kernels, they then do not depend on measured times. "auto" is
    "time" for the native CPU kernels in AsyncLLM and the server, and where target_itl is set; else "tokens".
    target_itl: seconds that steps may take from one token of a request to the next, in place of twice the time of their
    decoding rows. No more requests run together than it allows. A block of a prompt is computed at any rate.
    backend: "cuda" is FlashInfer, "cpu" the native kernels, "reference" plain torch; "auto" takes the first of them
    that works. The name of an instruction set, such as "avx512bf16", takes that build of the native kernels: machines
    of different ability then compute the same bits.
    """

    model: str  # Hugging Face folder, hub id or .gguf file
    revision: str | None = None  # revision of a model from the hub
    dtype: str = "auto"  # of the model, KV and adapters; "auto" is the checkpoint's, or float32 for float16 on the CPU
    kv_cache_dtype: str = "auto"  # data type of KV; "auto" is dtype; "fp8" (e4m3) halves the KV's bytes, on CUDA only
    backend: str = "auto"
    memory: int | float | str | None = None
    block_size: int = 16  # tokens
    max_model_len: int | None = None  # tokens of prompt and output together; None is the model's limit
    max_num_seqs: int = 128  # requests that run at once
    max_num_batched_tokens: int = 2048  # tokens in one step
    step_budget: str = "auto"  # what else limits a step: "time" of its decoding rows, or "tokens" alone
    target_itl: float | None = None  # seconds between tokens
    max_num_queued_reqs: int = 4096  # unfinished requests; the engine refuses more
    max_num_queued_tokens: int | None = None  # tokens of prompts that wait for their first token; None: no limit
    max_queue_seconds: float | None = None  # that a request may be predicted to wait; None: no limit
    max_tenants: int = 256  # tenants with unfinished requests; further ones share one
    scheduling_policy: str = "fair"  # or "fcfs", "priority"
    tenant_weights: Mapping[str, float] = field(default_factory=dict)  # weights of tenants in fair shares; default 1
    adapter_weights: Mapping[str, float] = field(default_factory=dict)  # weights of adapters within a tenant's share
    # Starvation bound: a request that is next in its queue goes first once others have received this many tokens.
    max_passed_over: int = 65536
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    tensor_parallel_size: int = 1  # shards that share the model, each in a process of its own
    threads: int | None = None
    # Seconds without a sign of life, after which the engine process is replaced; a step may take as long as predicted.
    stall_seconds: float = 5.0
    seed: int | None = None  # seed of requests without one; None draws a new one for each
    generation_config: str = "auto"  # "auto": defaults of the model's generation_config.json; "vllm": neutral ones
    adapter_copy_bytes: int = 64 << 20
    host_cache: int | float | str | None = 0.25
    max_adapter_versions: int = 2  # versions kept under each name, the active one included
    max_logprobs: int = 20
    max_n: int = 1024  # samples of one prompt
    max_stops: int = 256  # stop strings of a request, and as many stop tokens

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            known = ", ".join(KV_CACHE_DTYPES)
            raise ValueError(f"kv_cache_dtype: {self.kv_cache_dtype!r} is not one of {known}")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend: {self.backend!r} is not one of {', '.join(BACKENDS)}")
        if self.scheduling_policy not in POLICIES:
            raise ValueError(f"scheduling_policy: {self.scheduling_policy!r} is not one of {', '.join(POLICIES)}")
        if self.step_budget not in STEP_BUDGETS:
            raise ValueError(f"step_budget: {self.step_budget!r} is not one of {', '.join(STEP_BUDGETS)}")
        if self.target_itl is not None:
            _check_target(self.target_itl, self.step_budget)
        if self.host_cache is not None:
            parse_memory(self.host_cache, 1 << 40, "host_cache")
        for name in ("tenant_weights", "adapter_weights"):
            _check_weights(name, getattr(self, name))
        for name in ("enable_prefix_caching", "enforce_eager"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: {getattr(self, name)!r} is neither True nor False")
        if self.generation_config not in ("auto", "vllm"):
            raise ValueError(f"generation_config: {self.generation_config!r} is neither 'auto' nor 'vllm'")
        for name in COUNTS:
            value = getattr(self, name)
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not is_count and not (value is None and name in OPTIONAL_COUNTS):
                raise ValueError(f"{name}: {value!r} is not a whole number of at least 1")
        stall = self.stall_seconds
        if isinstance(stall, bool) or not isinstance(stall, int | float) or not 0.1 <= stall <= 3600:
            raise ValueError(f"stall_seconds: {stall!r} is not a number of seconds from 0.1 to 3600")
        if isinstance(self.max_logprobs, bool) or not isinstance(self.max_logprobs, int) or self.max_logprobs < -1:
            raise ValueError(f"max_logprobs: {self.max_logprobs!r} is neither a whole number nor -1, which is no limit")
        if self.max_queue_seconds is not None and not _is_positive(self.max_queue_seconds):
            raise ValueError(f"max_queue_seconds: {self.max_queue_seconds!r} is not a number above 0")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise ValueError(f"seed: {self.seed!r} is not an integer")

    def without_streams(self) -> "EngineConfig":
        """The options where nobody reads the tokens as they come, so that no step needs to be short for them."""
        is_open = self.step_budget == "auto" and self.target_itl is None
        return replace(self, step_budget="tokens") if is_open else self


def _check_target(seconds: float, step_budget: str) -> None:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds <= MAX_TARGET_ITL:
        raise ValueError(f"target_itl: {seconds!r} is not a number of seconds above 0 and up to {MAX_TARGET_ITL:g}")
    if step_budget == "tokens":
        raise ValueError('target_itl: needs step_budget="time" or "auto"; "tokens" is a fixed number of tokens')


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _check_weights(name: str, weights: object) -> None:
    if not isinstance(weights, Mapping):
        raise ValueError(f"{name}: {type(weights).__name__} is not a mapping from names to numbers")
    for key, weight in weights.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not isinstance(key, str) or not is_number or not 1e-3 <= weight <= 1e3:
            raise ValueError(f"{name}: {key!r:.80}: {weight!r} is not a number from 0.001 to 1000")
