"""The names of vLLM's classes, as of version 0.32: what its methods take, and what its values hold."""

from blora.engine.front_end.validator import UNSERVED, WITHOUT_EFFECT
from blora.scheduler import RequestOutputKind

CHAT = (
    "messages, sampling_params=None, use_tqdm=True, lora_request=None, chat_template=None, "
    "chat_template_content_format='auto', add_generation_prompt=True, continue_final_message=False, tools=None, "
    "chat_template_kwargs=None, tokenization_kwargs=None, mm_processor_kwargs=None"
)
COMPLETION = "lora_request=None, priority=None, tokenization_kwargs=None, mm_processor_kwargs=None"

# Class -> method or attribute -> its parameters; None for an attribute.
METHODS: dict[str, dict[str, str | None]] = {
    "LLM": {
        "from_engine_args": "engine_args",
        "generate": f"prompts, sampling_params=None, use_tqdm=True, {COMPLETION}",
        "chat": CHAT,
        "enqueue": f"prompts, sampling_params=None, {COMPLETION}, use_tqdm=True",
        "enqueue_chat": f"{CHAT}, priority=None",
        "wait_for_completion": "output_type=None, use_tqdm=True",
        "get_tokenizer": "",
        "get_default_sampling_params": "",
        "get_metrics": "",
        "reset_prefix_cache": "reset_running_requests=False, reset_connector=False",
        "llm_engine": None,
        "model_config": None,
        "renderer": None,
        "input_processor": None,
        "beam_search": "prompts, params, lora_request=None, use_tqdm=False, concurrency_limit=None",
        "encode": "prompts, pooling_params=None, use_tqdm=True, lora_request=None, pooling_task=None",
        "embed": "prompts, use_tqdm=True, pooling_params=None, lora_request=None",
        "classify": "prompts, use_tqdm=True, pooling_params=None, lora_request=None",
        "reward": "prompts, pooling_params=None, use_tqdm=True, lora_request=None",
        "score": "data_1, data_2, use_tqdm=True, pooling_params=None, lora_request=None",
        "apply_model": "func",
        "collective_rpc": "method, timeout=None, args=(), kwargs=None",
        "start_profile": "profile_prefix=None",
        "stop_profile": "",
        "sleep": "level=1, mode='abort'",
        "wake_up": "tags=None",
        "get_world_size": "include_dp=True",
        "reset_mm_cache": "",
        "init_weight_transfer_engine": "request",
        "start_weight_update": "",
        "update_weights": "request",
        "finish_weight_update": "weight_version=None",
        "update_weight_version": "new_version",
    },
    "LLMEngine": {
        "from_engine_args": "engine_args, usage_context=None, stat_loggers=None, enable_multiprocessing=False",
        "add_request": (
            "request_id, prompt, params, arrival_time=None, lora_request=None, tokenization_kwargs=None, "
            "trace_headers=None, priority=0, prompt_text=None"
        ),
        "step": "",
        "abort_request": "request_ids, internal=False",
        "has_unfinished_requests": "",
        "get_num_unfinished_requests": "",
        "get_tokenizer": "",
        "get_metrics": "",
        "reset_prefix_cache": "reset_running_requests=False, reset_connector=False",
        "add_lora": "lora_request",
        "remove_lora": "lora_id",
        "list_loras": "",
        "pin_lora": "lora_id",
        "model_config": None,
        "vllm_config": None,
        "get_supported_tasks": "",
        "do_log_stats": "",
        "do_log_stats_with_interval": "",
        "start_profile": "profile_prefix=None",
        "stop_profile": "",
        "sleep": "level=1, mode='abort'",
        "wake_up": "tags=None",
        "is_sleeping": "",
        "apply_model": "func",
        "collective_rpc": "method, timeout=None, args=(), kwargs=None",
        "reset_mm_cache": "",
        "reset_encoder_cache": "",
    },
    "AsyncLLM": {
        "from_engine_args": "engine_args, start_engine_loop=True, usage_context=None, stat_loggers=None",
        "from_vllm_config": "vllm_config",
        "generate": (
            "prompt, sampling_params, request_id, prompt_text=None, lora_request=None, tokenization_kwargs=None, "
            "trace_headers=None, priority=0, data_parallel_rank=None"
        ),
        "abort": "request_id, internal=False",
        "shutdown": "timeout=None",
        "get_tokenizer": "",
        "reset_prefix_cache": "reset_running_requests=False, reset_connector=False",
        "add_lora": "lora_request",
        "remove_lora": "lora_id",
        "list_loras": "",
        "pin_lora": "lora_id",
        "check_health": "",
        "is_running": None,
        "is_stopped": None,
        "errored": None,
        "dead_error": None,
        "wait_for_requests_to_drain": "drain_timeout=300",
        "pause_generation": "mode='abort'",
        "resume_generation": "",
        "is_paused": "",
        "model_config": None,
        "vllm_config": None,
        "renderer": None,
        "input_processor": None,
        "encode": "prompt, pooling_params, request_id, lora_request=None",
        "get_supported_tasks": "",
        "is_tracing_enabled": "",
        "do_log_stats": "",
        "start_profile": "profile_prefix=None",
        "stop_profile": "",
        "sleep": "level=1, mode='abort'",
        "wake_up": "tags=None",
        "is_sleeping": "",
        "collective_rpc": "method, timeout=None, args=(), kwargs=None",
        "reset_mm_cache": "",
        "reset_encoder_cache": "",
        "scale_elastic_ep": "new_data_parallel_size, drain_timeout=300",
    },
}

REQUIRED = object()  # the default of a field that has none

# Class -> field -> its default.
FIELDS: dict[str, dict[str, object]] = {
    "SamplingParams": {
        "n": 1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": None,
        "stop": None,
        "stop_token_ids": None,
        "ignore_eos": False,
        "max_tokens": 16,
        "min_tokens": 0,
        "logprobs": None,
        "prompt_logprobs": None,
        "logprob_token_ids": None,
        "prompt_logprob_token_ids": None,
        "prompt_logprob_start": None,
        "flat_logprobs": False,
        "detokenize": True,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "include_stop_str_in_output": False,
        "output_kind": RequestOutputKind.CUMULATIVE,
        "stream_interval": None,
        "structured_outputs": None,
        "logit_bias": None,
        "allowed_token_ids": None,
        "bad_words": None,
        "extra_args": None,
        "truncate_prompt_tokens": None,
        "skip_clone": False,
        "skip_reading_prefix_cache": None,
        "routed_experts_prompt_start": 0,
        "thinking_token_budget": None,
        "repetition_detection": None,
        "trace_decode_token_ids": None,
        "watermarking": None,
    },
    "LoRARequest": {
        "lora_name": REQUIRED,
        "lora_int_id": REQUIRED,
        "lora_path": "",
        "base_model_name": None,
        "tensorizer_config_dict": None,
        "load_inplace": False,
        "is_3d_lora_weight": False,
    },
    "RequestOutput": {
        "request_id": REQUIRED,
        "prompt": REQUIRED,
        "prompt_token_ids": REQUIRED,
        "prompt_logprobs": REQUIRED,
        "outputs": REQUIRED,
        "finished": REQUIRED,
        "metrics": None,
        "lora_request": None,
        "encoder_prompt": None,
        "encoder_prompt_token_ids": None,
        "num_cached_tokens": None,
        "kv_transfer_params": None,
    },
    "CompletionOutput": {
        "index": REQUIRED,
        "text": REQUIRED,
        "token_ids": REQUIRED,
        "cumulative_logprob": REQUIRED,
        "logprobs": REQUIRED,
        "routed_experts": None,
        "finish_reason": None,
        "stop_reason": None,
        "lora_request": None,
    },
    "RequestMetrics": {
        "arrival_time": 0.0,
        "queued_ts": 0.0,
        "scheduled_ts": 0.0,
        "first_token_ts": 0.0,
        "last_token_ts": 0.0,
        "num_generation_tokens": 0,
        "first_token_latency": 0.0,
        "num_preemptions": 0,
        "is_corrupted": False,
    },
}

EXPERTS = "blora serves no mixture of experts"
ENCODERS = "blora serves no models with an encoder"

# Class -> field that is not served -> the reason.
LACKING: dict[str, dict[str, str]] = {
    "SamplingParams": dict.fromkeys(UNSERVED, "a request that sets it is refused"),
    "LoRARequest": {
        "tensorizer_config_dict": "adapters are folders in PEFT's form",
        "is_3d_lora_weight": EXPERTS,
    },
    "RequestOutput": {
        "encoder_prompt": ENCODERS,
        "encoder_prompt_token_ids": ENCODERS,
        "kv_transfer_params": "blora moves no KV between engines",
    },
    "CompletionOutput": {"routed_experts": EXPERTS},
    "RequestMetrics": {"is_corrupted": 'a row that is not finite ends with finish_reason "error"'},
}
# Class -> field without an effect -> the reason.
IGNORED: dict[str, dict[str, str]] = {
    "SamplingParams": WITHOUT_EFFECT,
    "LoRARequest": {"base_model_name": "an engine has one base model"},
}
# Class -> field that is the same, but for this.
NOTES: dict[str, dict[str, str]] = {
    "SamplingParams": {
        "n": "up to `max_n`; greedy samples may be several, which are equal",
        "temperature": "up to 5; a small one is not raised",
        "repetition_penalty": "up to 10",
        "seed": "-1 is a seed as any other",
        "stop": "up to `max_stops`",
        "stop_token_ids": "up to `max_stops`",
        "min_tokens": "a request with more than fit is refused",
        "logprobs": "-1 in process only",
        "prompt_logprobs": "-1 in process only",
        "bad_words": "a spelling after a space is banned whatever its number of tokens",
        "truncate_prompt_tokens": "-1 leaves room for `max_tokens`",
    },
}
