"""The methods and attributes of vLLM's engines that blora does not serve, and why."""

from typing import TYPE_CHECKING

GENERATES = "blora generates text"
NO_CODE = "no code of others runs in the engine"
MEMORY = "an engine keeps its memory until it ends"
ADAPTERS = "publish adapters instead"
PROFILE = "profile the process with py-spy or perf"
INFO = "get_info() tells facts and counts"
TEXT = "blora serves text"
TEMPLATES = "get_tokenizer() renders conversations"
PAUSES = "an engine computes as long as it has requests"

UNSERVED = {
    "apply_model": NO_CODE,
    "beam_search": "SamplingParams(n=...) draws several samples",
    "classify": GENERATES,
    "collective_rpc": NO_CODE,
    "do_log_stats": INFO,
    "do_log_stats_with_interval": INFO,
    "embed": GENERATES,
    "encode": GENERATES,
    "finish_weight_update": ADAPTERS,
    "from_vllm_config": "from_engine_args() takes the options",
    "get_model_config": INFO,
    "get_supported_tasks": GENERATES,
    "get_world_size": "tensor_parallel_size= is the number of processes",
    "init_weight_transfer_engine": ADAPTERS,
    "input_processor": TEMPLATES,
    "is_paused": PAUSES,
    "is_sleeping": MEMORY,
    "is_tracing_enabled": "blora sends no traces",
    "model_config": INFO,
    "pause_generation": PAUSES,
    "renderer": TEMPLATES,
    "reset_encoder_cache": TEXT,
    "reset_mm_cache": TEXT,
    "resume_generation": PAUSES,
    "reward": GENERATES,
    "scale_elastic_ep": "an engine is one model on one machine",
    "score": GENERATES,
    "sleep": MEMORY,
    "start_profile": PROFILE,
    "start_weight_update": ADAPTERS,
    "stop_profile": PROFILE,
    "update_weight_version": ADAPTERS,
    "update_weights": ADAPTERS,
    "vllm_config": INFO,
    "wait_for_requests_to_drain": "drain() refuses new requests and waits for the others",
    "wake_up": MEMORY,
}


class TellsUnserved:
    """Tells why there is no method of vLLM's, where it is asked for one."""

    if not TYPE_CHECKING:  # a type checker knows which methods there are

        def __getattr__(self, name):
            if name in UNSERVED:
                raise AttributeError(f"{name} of vLLM is not served: {UNSERVED[name]}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
