"""EngineArgs: the options of an engine by the names that vLLM gives them, and what each means here.

Owns the list of names. `EngineConfig` owns the values: an option with a meaning here has the default that it has there.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ..config import EngineConfig
from .flags import add_flags
from .meaning import default_of, no_meaning, not_served, other_default, own, same, with_meaning

OURS = {entry.name: default_of(entry) for entry in fields(EngineConfig)}
DTYPE_NAMES = {"half": "float16", "float": "float32"}

# Why options have no meaning here, where many share the reason.
ARENA = "KV blocks and adapters share one arena, see memory="
WEIGHTS = "the model stays in the memory of the device that computes it"
MEDIA = "blora serves text"
EXPERTS = "blora serves no mixture of experts"
STATES = "blora serves no state-space models"
SHARDS = "blora starts the processes of tensor_parallel_size= by itself"
KERNELS = "use backend= to choose kernels"
LOADING = "blora reads safetensors and GGUF files"
STATISTICS = "blora logs no statistics; get_info() returns its counts"
DRAFTS = "blora drafts no tokens, and the answers are the same"
STEPS = "blora has one scheduler"
GRAPHS = "blora chooses the sizes; enforce_eager= captures none"
# Why values are refused, where many options share the reason.
ONE_ENGINE = "an engine is one model on one machine"
OWN_MODELS = "blora computes models as their files say, with its own code"
TRANSFER = "blora moves no KV between engines"


@dataclass
class EngineArgs:
    """The options of an engine under vLLM's names, for `LLMEngine.from_engine_args` and its kind.

    What each means here is in the table of vLLM's names. Options of blora's own stand beside them.
    """

    # The model.
    model: str = same("Qwen/Qwen3-0.6B")
    revision: str | None = same(None)
    dtype: str = same("auto")
    max_model_len: int | None = same(None)
    generation_config: str = same("auto")
    trust_remote_code: bool = no_meaning(False, "blora never runs code that comes with a model")
    served_model_name: str | list[str] | None = no_meaning(None, "the flag of the server names the model over HTTP")
    hf_token: bool | str | None = no_meaning(None, "log in with `hf auth login`")
    hf_config_path: str | None = not_served(None, OWN_MODELS)
    hf_overrides: dict[str, Any] | None = not_served({}, OWN_MODELS)
    model_class_overrides: dict[str, str] | None = not_served({}, OWN_MODELS)
    override_generation_config: dict[str, Any] | None = not_served({}, "give each request its SamplingParams")
    override_attention_dtype: str | None = not_served(None, OWN_MODELS)
    rope_scaling: dict[str, Any] | None = not_served(None, OWN_MODELS)
    rope_theta: float | None = not_served(None, OWN_MODELS)
    disable_sliding_window: bool = not_served(False, OWN_MODELS)
    model_impl: str = no_meaning("auto", OWN_MODELS)
    config_format: str = not_served("auto", LOADING, "hf")
    code_revision: str | None = no_meaning(None, "blora never runs code that comes with a model")
    runner: str = not_served("auto", "blora generates text", "generate")
    convert: str = not_served("auto", "blora generates text", "none")
    task: str = not_served("auto", "blora generates text", "generate")
    pooler_config: Any = not_served(None, "blora generates text")
    diffusion_config: dict[str, Any] | None = not_served(None, "blora generates text token by token")
    enable_prompt_embeds: bool = not_served(False, "prompts are texts or tokens")
    quantization: str | None = not_served(None, "a model is computed in the type of dtype=", "gguf")
    quantization_config: Any = not_served(None, "a model is computed in the type of dtype=")
    allow_deprecated_quantization: bool = no_meaning(False, "a model is computed in the type of dtype=")
    load_format: str = not_served("auto", LOADING, "safetensors", "hf", "gguf")
    download_dir: str | None = no_meaning(None, "the environment variable HF_HOME names the folder of downloads")
    safetensors_load_strategy: str | None = no_meaning(None, LOADING)
    safetensors_prefetch_num_threads: int = no_meaning(8, LOADING)
    safetensors_prefetch_block_size: int = no_meaning(16777216, LOADING)
    model_loader_extra_config: dict[str, Any] | None = no_meaning({}, LOADING)
    ignore_patterns: str | list[str] | None = no_meaning(None, LOADING)
    use_tqdm_on_load: bool = no_meaning(True, LOADING)
    pt_load_map_location: str | dict[str, str] = no_meaning("cpu", LOADING)
    weight_transfer_config: Any = not_served(None, "publish adapters instead")

    # The tokenizer.
    tokenizer: str | None = not_served(None, "a model is served with the tokenizer of its own folder")
    tokenizer_mode: str = not_served("auto", "the tokenizer is the one that tokenizer.json describes", "hf")
    tokenizer_revision: str | None = not_served(None, "the tokenizer comes with the revision of the model")
    skip_tokenizer_init: bool = not_served(False, "give SamplingParams(detokenize=False) to leave texts out")
    tokens_only: bool = not_served(False, "give SamplingParams(detokenize=False) to leave texts out")
    renderer_num_workers: int = no_meaning(1, "one process renders texts")

    # Adapters.
    enable_lora: bool = no_meaning(False, "adapters can always be loaded, and cost nothing until they are used")
    max_loras: int = no_meaning(1, "there are no slots: KV blocks and adapters share one arena, see memory=")
    max_lora_rank: int = no_meaning(16, "every rank is stored at its true size, see memory=")
    max_cpu_loras: int | None = no_meaning(
        None, "use host_cache=, in bytes or as a fraction; an adapter beyond it is read again when asked for"
    )
    lora_dtype: Any = no_meaning("auto", "adapters have the model's dtype")
    lora_target_modules: list[str] | None = no_meaning(None, "every module that an adapter changes is served")
    fully_sharded_loras: bool = no_meaning(False, "adapters are sharded as the model is")
    lora_extra_vocab_size: int = no_meaning(256, "added tokens take the room that they need")
    specialize_active_lora: bool = no_meaning(False, "a step computes the adapters that its rows name")
    default_mm_loras: dict[str, str] | None = no_meaning(None, MEDIA)
    enable_tower_connector_lora: bool = no_meaning(False, MEDIA)
    enable_mixed_moe_lora_format: bool = no_meaning(False, EXPERTS)
    enable_moe_shared_loras: bool = no_meaning(False, EXPERTS)

    # Memory.
    kv_cache_dtype: str = same("auto")
    block_size: int = other_default(OURS["block_size"], "vLLM's depends on the device")
    enable_prefix_caching: bool = same(True)
    gpu_memory_utilization: float = no_meaning(0.92, "use memory=, in bytes or as a fraction")
    kv_cache_memory_bytes: int | None = no_meaning(None, "use memory=, which is for KV blocks and adapters together")
    num_gpu_blocks_override: int | None = no_meaning(None, ARENA)
    swap_space: float = no_meaning(4, "a preempted request is computed again")
    cpu_offload_gb: float = no_meaning(0, WEIGHTS)
    cpu_offload_params: Any = no_meaning(None, WEIGHTS)
    offload_backend: str = no_meaning("auto", WEIGHTS)
    offload_group_size: int = no_meaning(0, WEIGHTS)
    offload_num_in_group: int = no_meaning(1, WEIGHTS)
    offload_prefetch_step: int = no_meaning(1, WEIGHTS)
    offload_params: Any = no_meaning(None, WEIGHTS)
    kv_offloading_size: float | None = no_meaning(None, "a preempted request is computed again")
    kv_offloading_backend: str = no_meaning("native", "a preempted request is computed again")
    prefix_caching_hash_algo: str = no_meaning("sha256", "keys of the prefix cache are sha256")
    prefix_cache_retention_interval: int | None = no_meaning(None, ARENA)
    prefix_match_unit: int | None = no_meaning(None, "the prefix cache holds blocks of block_size=")
    calculate_kv_scales: bool = no_meaning(False, "kv_cache_dtype= needs no scales")
    kv_cache_dtype_skip_layers: list[str] | None = no_meaning(None, "kv_cache_dtype= is the type of all layers")
    kv_sharing_fast_prefill: bool = no_meaning(False, "blora serves no models that share KV between layers")
    disable_hybrid_kv_cache_manager: bool | None = no_meaning(None, ARENA)
    enable_sleep_mode: bool = no_meaning(False, "an engine keeps its memory until it ends")
    enable_cumem_allocator: bool = no_meaning(False, ARENA)

    # Scheduling.
    max_num_seqs: int = other_default(OURS["max_num_seqs"], "vLLM's depends on the device")
    max_num_batched_tokens: int = other_default(OURS["max_num_batched_tokens"], "vLLM's depends on the device")
    max_num_queued_reqs: int = other_default(OURS["max_num_queued_reqs"], "vLLM has no limit")
    scheduling_policy: str = other_default(
        OURS["scheduling_policy"], 'vLLM\'s is "fcfs"; with equal priorities and one tenant both are the same'
    )
    seed: int | None = same(0, "AsyncLLM(model) without EngineArgs draws a new one for each request")
    max_num_queued_tokens: int | None = same(None, "`blora serve` has a limit by default")
    max_num_scheduled_tokens: int | None = no_meaning(None, "use max_num_batched_tokens=")
    enable_chunked_prefill: bool | None = no_meaning(
        None, "prompts are always computed in chunks that fit max_num_batched_tokens"
    )
    long_prefill_token_threshold: int = no_meaning(0, "chunks of prompts are cut to a step's time")
    disable_chunked_mm_input: bool = no_meaning(False, MEDIA)
    scheduler_reserve_full_isl: bool = no_meaning(True, "a request is admitted with blocks for its whole prompt")
    prefill_schedule_interval: int = no_meaning(1, STEPS)
    watermark: float = no_meaning(0.0, STEPS)
    async_scheduling: bool | None = no_meaning(None, STEPS)
    stream_interval: int = no_meaning(1, "a slow reader gets fewer, larger outputs")
    scheduler_cls: Any = not_served(None, STEPS)
    num_scheduler_steps: int = no_meaning(1, STEPS)
    preemption_mode: str | None = no_meaning(None, "a preempted request is computed again")
    disable_async_output_proc: bool = no_meaning(False, STEPS)

    # Sampling.
    max_logprobs: int = same(20)
    logprobs_mode: str = not_served("raw_logprobs", "log probabilities are those of the raw logits")
    logits_processors: Any = not_served(None, "no code of others runs in the engine")
    use_fp64_gumbel: bool = no_meaning(False, "draws are counter-based, and the same in any batch")
    return_sampling_mask: bool = not_served(False, "outputs have no mask")
    enable_return_routed_experts: bool = not_served(False, EXPERTS)
    speculative_config: dict[str, Any] | None = no_meaning(None, DRAFTS)
    spec_method: str | None = no_meaning(None, DRAFTS)
    spec_model: str | None = no_meaning(None, DRAFTS)
    spec_tokens: int | None = no_meaning(None, DRAFTS)
    structured_outputs_config: Any = no_meaning(None, "there is one library of grammars; options come with a request")
    guided_decoding_backend: str = no_meaning("auto", "there is one library of grammars")
    reasoning_config: Any = no_meaning(None, "blora returns the whole text")
    reasoning_parser: str = no_meaning("", "blora returns the whole text")
    reasoning_parser_plugin: str | None = no_meaning(None, "blora returns the whole text")

    # Processes and devices.
    tensor_parallel_size: int = same(1)
    enforce_eager: bool = same(False)
    device: str = no_meaning("auto", KERNELS)
    device_ids: list[str] | None = no_meaning(None, "the environment variable CUDA_VISIBLE_DEVICES names devices")
    attention_backend: str | None = no_meaning(None, KERNELS)
    attention_config: Any = no_meaning(None, KERNELS)
    kernel_config: Any = no_meaning(None, KERNELS)
    linear_backend: str = no_meaning("auto", KERNELS)
    ir_op_priority: Any = no_meaning(None, KERNELS)
    disable_cascade_attn: bool = no_meaning(True, KERNELS)
    enable_flashinfer_autotune: bool | None = no_meaning(None, KERNELS)
    enable_bf16x3_router_gemm: bool | None = no_meaning(None, EXPERTS)
    gdn_prefill_backend: str | None = no_meaning(None, KERNELS)
    kda_prefill_backend: str | None = no_meaning(None, KERNELS)
    compilation_config: Any = no_meaning(None, "nothing is compiled for a model")
    optimization_level: int = no_meaning(2, "nothing is compiled for a model")
    performance_mode: str = no_meaning("balanced", "a step's budget is time")
    cudagraph_capture_sizes: list[int] | None = no_meaning(None, GRAPHS)
    max_cudagraph_capture_size: int | None = no_meaning(None, GRAPHS)
    max_seq_len_to_capture: int = no_meaning(8192, GRAPHS)
    pipeline_parallel_size: int = not_served(1, ONE_ENGINE)
    data_parallel_size: int = not_served(1, ONE_ENGINE)
    data_parallel_rank: int | None = not_served(None, ONE_ENGINE)
    data_parallel_start_rank: int | None = not_served(None, ONE_ENGINE)
    data_parallel_size_local: int | None = not_served(None, ONE_ENGINE, 1)
    data_parallel_address: str | None = no_meaning(None, ONE_ENGINE)
    data_parallel_rpc_port: int | None = no_meaning(None, ONE_ENGINE)
    data_parallel_backend: str = no_meaning("mp", ONE_ENGINE)
    data_parallel_hybrid_lb: bool = not_served(False, ONE_ENGINE)
    data_parallel_external_lb: bool = not_served(False, ONE_ENGINE)
    data_parallel_multi_port_external_lb: bool = not_served(False, ONE_ENGINE)
    prefill_context_parallel_size: int = not_served(1, ONE_ENGINE)
    decode_context_parallel_size: int = not_served(1, ONE_ENGINE)
    dcp_comm_backend: str | None = no_meaning(None, ONE_ENGINE)
    dcp_q_replicate: bool | None = no_meaning(None, ONE_ENGINE)
    dcp_kv_cache_interleave_size: int = no_meaning(1, ONE_ENGINE)
    cp_kv_cache_interleave_size: int = no_meaning(1, ONE_ENGINE)
    distributed_executor_backend: Any = no_meaning(None, SHARDS)
    master_addr: str = no_meaning("127.0.0.1", SHARDS)
    master_port: int = no_meaning(29501, SHARDS)
    nnodes: int = not_served(1, ONE_ENGINE)
    node_rank: int = not_served(0, ONE_ENGINE)
    distributed_timeout_seconds: int | None = no_meaning(None, SHARDS)
    cpu_distributed_timeout_seconds: int | None = no_meaning(None, SHARDS)
    max_parallel_loading_workers: int | None = no_meaning(None, SHARDS)
    disable_custom_all_reduce: bool = no_meaning(False, SHARDS)
    enable_batch_sharded_sampling: bool | None = no_meaning(None, SHARDS)
    disable_nccl_for_dp_synchronization: bool | None = no_meaning(None, ONE_ENGINE)
    enable_nccl_comm_suspend: bool = no_meaning(False, SHARDS)
    dp_sync_interval: int = no_meaning(1, ONE_ENGINE)
    numa_bind: bool = no_meaning(False, "start blora with numactl")
    numa_bind_nodes: list[int] | None = no_meaning(None, "start blora with numactl")
    numa_bind_cpus: list[str] | None = no_meaning(None, "start blora with numactl")
    ray_workers_use_nsight: bool = no_meaning(False, SHARDS)
    worker_cls: Any = not_served("auto", "no code of others runs in the engine")
    worker_extension_cls: str = not_served("", "no code of others runs in the engine")
    shutdown_timeout: int = no_meaning(0, "`blora serve` has the flag; in process, pass it to AsyncLLM.drain")
    enable_fault_tolerance: bool = no_meaning(False, "AsyncLLM always starts its engine again")
    fault_tolerance_config: Any = no_meaning(None, "AsyncLLM always starts its engine again")
    kv_transfer_config: Any = not_served(None, TRANSFER)
    kv_events_config: Any = no_meaning(None, "watch_adapters() tells the events of adapters")
    ec_transfer_config: Any = not_served(None, TRANSFER)
    ec_manager_config: Any = no_meaning(None, MEDIA)
    additional_config: dict[str, Any] | None = no_meaning({}, KERNELS)
    fail_on_environ_validation: bool = no_meaning(False, "blora reads no environment variables of vLLM")

    # Telemetry.
    disable_log_stats: bool = no_meaning(False, STATISTICS)
    aggregate_engine_logging: bool = no_meaning(False, STATISTICS)
    enable_log_requests: bool = no_meaning(False, "blora logs no requests")
    disable_log_requests: bool = no_meaning(False, "blora logs no requests")
    show_hidden_metrics_for_version: str | None = no_meaning(None, STATISTICS)
    otlp_traces_endpoint: str | None = no_meaning(None, "blora sends no traces")
    collect_detailed_traces: list[str] | None = no_meaning(None, "blora sends no traces")
    per_request_spec_decode_metrics: str = no_meaning("none", DRAFTS)
    kv_cache_metrics: bool = no_meaning(False, STATISTICS)
    kv_cache_metrics_sample: float = no_meaning(0.01, STATISTICS)
    cudagraph_metrics: bool = no_meaning(False, STATISTICS)
    enable_layerwise_nvtx_tracing: bool = no_meaning(False, "blora sends no traces")
    enable_mfu_metrics: bool = no_meaning(False, STATISTICS)
    enable_logging_iteration_details: bool = no_meaning(False, STATISTICS)
    enable_mm_processor_stats: bool = no_meaning(False, MEDIA)
    enable_trace_replay: bool = no_meaning(False, "the benchmarks replay loads")
    jit_monitor_mode: str = no_meaning("warn", "nothing is compiled for a model")
    jit_monitor_verbose: bool = no_meaning(False, "nothing is compiled for a model")
    profiler_config: Any = no_meaning(None, "profile the process with py-spy or perf")

    # Mixtures of experts, state-space models, media.
    enable_expert_parallel: bool = no_meaning(False, EXPERTS)
    enable_ep_weight_filter: bool = no_meaning(False, EXPERTS)
    enable_elastic_ep: bool = no_meaning(False, EXPERTS)
    enable_eplb: bool = no_meaning(False, EXPERTS)
    eplb_config: Any = no_meaning(None, EXPERTS)
    expert_placement_strategy: str = no_meaning("linear", EXPERTS)
    moe_backend: str = no_meaning("auto", EXPERTS)
    all2all_backend: str = no_meaning("allgather_reducescatter", EXPERTS)
    enable_dbo: bool = no_meaning(False, EXPERTS)
    ubatch_size: int = no_meaning(0, EXPERTS)
    dbo_decode_token_threshold: int = no_meaning(32, EXPERTS)
    dbo_prefill_token_threshold: int = no_meaning(512, EXPERTS)
    mamba_config: Any = no_meaning(None, STATES)
    mamba_backend: str = no_meaning("triton", STATES)
    mamba_block_size: int | None = no_meaning(None, STATES)
    mamba_cache_dtype: str = no_meaning("auto", STATES)
    mamba_ssm_cache_dtype: str = no_meaning("auto", STATES)
    mamba_cache_mode: str = no_meaning("none", STATES)
    mamba_ssu_algorithm: str | None = no_meaning(None, STATES)
    enable_mamba_cache_stochastic_rounding: bool = no_meaning(False, STATES)
    mamba_cache_philox_rounds: int = no_meaning(0, STATES)
    replayssm_buffer_len: int = no_meaning(0, STATES)
    use_replayssm: bool = no_meaning(False, STATES)
    allowed_local_media_path: str = no_meaning("", MEDIA)
    allowed_media_domains: list[str] | None = no_meaning(None, MEDIA)
    language_model_only: bool = no_meaning(False, MEDIA)
    limit_mm_per_prompt: dict[str, Any] | None = no_meaning({}, MEDIA)
    enable_mm_embeds: bool = no_meaning(False, MEDIA)
    interleave_mm_strings: bool = no_meaning(False, MEDIA)
    media_io_kwargs: dict[str, Any] | None = no_meaning({}, MEDIA)
    mm_processor_kwargs: dict[str, Any] | None = no_meaning(None, MEDIA)
    mm_processor_cache_gb: float = no_meaning(4, MEDIA)
    mm_processor_cache_type: str | None = no_meaning(None, MEDIA)
    mm_processor_device: str = no_meaning("auto", MEDIA)
    mm_hasher_algorithm: str | None = no_meaning(None, MEDIA)
    mm_shm_cache_max_object_size_mb: int = no_meaning(128, MEDIA)
    mm_encoder_only: bool = not_served(False, MEDIA)
    mm_encoder_tp_mode: str = no_meaning("weights", MEDIA)
    mm_encoder_attn_backend: str | None = no_meaning(None, MEDIA)
    mm_encoder_attn_dtype: str | None = no_meaning(None, MEDIA)
    mm_encoder_fp8_scale_path: str | None = no_meaning(None, MEDIA)
    mm_encoder_fp8_scale_save_path: str | None = no_meaning(None, MEDIA)
    mm_encoder_fp8_scale_save_margin: float = no_meaning(1.5, MEDIA)
    mm_tensor_ipc: str = no_meaning("direct_rpc", MEDIA)
    mm_ipc_gpu_memory_gb: float = no_meaning(0, MEDIA)
    mm_device_do_normalize: bool | None = no_meaning(None, MEDIA)
    skip_mm_profiling: bool = no_meaning(False, MEDIA)
    video_pruning_rate: float | None = no_meaning(None, MEDIA)
    video_pruning_method: str = no_meaning("evs", MEDIA)
    io_processor_plugin: str | None = not_served(None, "no code of others runs in the engine")

    # blora's own.
    backend: str = own(OURS["backend"])
    memory: int | float | str | None = own(OURS["memory"])
    host_cache: int | float | str | None = own(OURS["host_cache"])
    threads: int | None = own(OURS["threads"])
    max_adapter_versions: int = own(OURS["max_adapter_versions"])
    adapter_copy_bytes: int = own(OURS["adapter_copy_bytes"])
    tenant_weights: Mapping[str, float] = own({})
    adapter_weights: Mapping[str, float] = own({})
    step_budget: str = own(OURS["step_budget"])
    target_itl: float | None = own(OURS["target_itl"])
    max_passed_over: int = own(OURS["max_passed_over"])
    stall_seconds: float = own(OURS["stall_seconds"])
    max_queue_seconds: float | None = own(OURS["max_queue_seconds"])
    max_tenants: int = own(OURS["max_tenants"])
    max_n: int = own(OURS["max_n"])
    max_stops: int = own(OURS["max_stops"])

    @classmethod
    def add_cli_args(cls, parser: Any) -> Any:
        """Adds a flag for each option to a parser, or to a group of one, and returns it: `max_model_len` is
        --max-model-len."""
        return add_flags(parser, fields(cls))

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Self:
        """Takes the options out of parsed arguments, which may hold others."""
        return cls(**{entry.name: getattr(args, entry.name) for entry in fields(cls) if hasattr(args, entry.name)})

    def create_engine_config(self) -> EngineConfig:
        """Returns the configuration of the engine. Raises ValueError naming an option with an unsupported value."""
        return engine_config(**vars(self))


@dataclass
class AsyncEngineArgs(EngineArgs):
    """The options of AsyncLLM under vLLM's names. They are those of EngineArgs."""


def engine_config(model: str | Path, **options: Any) -> EngineConfig:
    """Returns the configuration. Raises ValueError naming an option that is unknown or has an unsupported value."""
    if not isinstance(model, str | Path):
        raise ValueError(f"model: {model!r:.80} is neither a path nor a hub id")
    served = served_options(str(model), options, EngineArgs)
    if "dtype" in served:
        served["dtype"] = _dtype_name(served["dtype"])
    return EngineConfig(model=str(model), **served)


def served_options(model: str, options: Mapping[str, Any], cls: type[EngineArgs]) -> dict[str, Any]:
    """Does what `with_meaning` does. A tokenizer that is the model's own, which scripts name again, is left out."""
    given = {name: value for name, value in options.items() if name != "tokenizer" or str(value) != model}
    return with_meaning(given, cls)


def _dtype_name(dtype: object) -> str:
    """Returns the one name of a data type: torch.float16, "float16" and "half" are "float16"."""
    name = str(dtype).removeprefix("torch.")
    return DTYPE_NAMES.get(name, name)
