"""EngineConfig: what a user decides about an engine. What is discovered at start-up is an argument, not config."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from blora.scheduler import POLICIES

from .kernels.instruction_sets import INSTRUCTION_SETS
from .memory.budget import parse_memory

OPTIONAL_COUNTS = ("max_model_len", "threads")
COUNTS = (
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_num_queued_reqs",
    "adapter_copy_bytes",
    "max_passed_over",
    "max_adapter_versions",
    "tensor_parallel_size",
    *OPTIONAL_COUNTS,
)
BACKENDS = ("auto", "cpu", *INSTRUCTION_SETS, "cuda", "reference")
DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_CACHE_DTYPES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """memory: bytes for KV blocks and adapters together: an int, a text such as "2GiB", or a fraction (a float up to
    1) of what is left of the memory this process may use, or of the GPU's; None is half of the one, 0.9 of the other;
    of each rank, where there are several. enforce_eager: captures no CUDA graphs, without which a GPU waits for the
    host to launch each kernel. threads: of compute, of all ranks together; None leaves torch's choice.
    adapter_copy_bytes: how much of adapters may be copied into the arena between two steps; while rows are computed
    it is also no more than takes a fifth of a step. host_cache: bytes for idle adapters in host memory, as memory is
    given; beyond it they are read again when they are asked for; None sets no limit. scheduling_policy: "fcfs", the
    order of arrival; "priority", lower priority values first; "fair", lower priority values first and, within a
    priority, fair shares of service for tenants and for each tenant's adapters. backend: "auto", the first usable of
    "cuda", FlashInfer; "cpu", the native kernels; "reference", plain torch. The name of an instruction set, such as
    "avx512bf16", is that build of the native kernels: for the same bits on machines of which some have a better one.
    """

    model: str  # Hugging Face folder, hub id or .gguf file
    revision: str | None = None  # of a hub id
    dtype: str = "auto"  # of weights, KV and adapters; "auto" is the checkpoint's
    kv_cache_dtype: str = "auto"  # "auto" is dtype; "fp8", which is e4m3, halves the KV's bytes; on CUDA
    backend: str = "auto"
    memory: int | float | str | None = None
    block_size: int = 16  # tokens
    max_model_len: int | None = None  # tokens of prompt and output; None is the model's
    max_num_seqs: int = 128  # requests that run at once
    max_num_batched_tokens: int = 2048  # tokens in one step
    max_num_queued_reqs: int = 4096  # unfinished requests; more are refused
    scheduling_policy: str = "fair"  # or "fcfs", "priority"
    tenant_weights: Mapping[str, float] = field(default_factory=dict)  # shares of service; 1 where none is given
    adapter_weights: Mapping[str, float] = field(default_factory=dict)  # by name, among the adapters of a tenant
    max_passed_over: int = 65536  # tokens of service that others may get before a request that is next in its queue
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    tensor_parallel_size: int = 1  # ranks that share the model, each in a process of its own
    threads: int | None = None
    seed: int | None = None  # of requests that bring none; None draws afresh
    generation_config: str = "auto"  # defaults from the model's generation_config.json, or "vllm" for neutral ones
    adapter_copy_bytes: int = 64 << 20
    host_cache: int | float | str | None = 0.25
    max_adapter_versions: int = 2  # of each name, the active one included

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
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise ValueError(f"seed: {self.seed!r} is not an integer")


def _check_weights(name: str, weights: object) -> None:
    if not isinstance(weights, Mapping):
        raise ValueError(f"{name}: {type(weights).__name__} is not a mapping from names to numbers")
    for key, weight in weights.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not isinstance(key, str) or not is_number or not 1e-3 <= weight <= 1e3:
            raise ValueError(f"{name}: {key!r:.80}: {weight!r} is not a number from 0.001 to 1000")
