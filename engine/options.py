"""Options: turns the keyword arguments of LLM and AsyncLLM into an EngineConfig.

Options of vLLM without a counterpart here are accepted. A warning in the log then says what takes their place.
"""

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from .config import EngineConfig

logger = logging.getLogger(__name__)

REPLACED = {
    "enable_lora": "adapters can always be loaded, and cost nothing until they are used",
    "max_loras": "there are no slots: KV blocks and adapters share one arena, see memory=",
    "max_lora_rank": "every rank is stored at its true size, see memory=",
    "max_cpu_loras": "use host_cache=, in bytes or as a fraction; an adapter beyond it is read again when asked for",
    "lora_dtype": "adapters have the model's dtype",
    "gpu_memory_utilization": "use memory=, in bytes or as a fraction",
    "kv_cache_memory_bytes": "use memory=, which is for KV blocks and adapters together",
    "swap_space": "a preempted request is computed again",
    "cpu_offload_gb": "the model stays in the memory of the device that computes it",
    "enable_chunked_prefill": "prompts are always computed in chunks that fit max_num_batched_tokens",
    "trust_remote_code": "blora never runs code that comes with a model",
    "disable_log_stats": "blora logs no statistics",
}

# Options that have one supported value only.
SINGLE = {
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "tokenizer": None,
    "tokenizer_mode": "auto",
    "skip_tokenizer_init": False,
    "quantization": None,
    "load_format": "auto",
}


DTYPE_NAMES = {"half": "float16", "float": "float32"}


def engine_config(model: str | Path, options: Mapping[str, Any]) -> EngineConfig:
    """Returns the configuration. Raises ValueError naming an option that is unknown or has an unsupported value."""
    if not isinstance(model, str | Path):
        raise ValueError(f"model: {model!r:.80} is neither a path nor a hub id")
    known = [field.name for field in fields(EngineConfig)]
    for name, value in options.items():
        if name in REPLACED:
            logger.warning("%s is ignored: %s", name, REPLACED[name])
        elif name in SINGLE:
            if value != SINGLE[name]:
                raise ValueError(f"{name}: {value!r} is not supported, only {SINGLE[name]!r}")
        elif name not in known:
            raise ValueError(f"there is no option {name!r}; the options are {', '.join(sorted(known))}")
    given = {name: value for name, value in options.items() if name in known}
    if "dtype" in given:
        given["dtype"] = _dtype_name(given["dtype"])
    return EngineConfig(model=str(model), **given)


def _dtype_name(dtype: object) -> str:
    """Returns the one name of a data type: torch.float16, "float16" and "half" are "float16"."""
    name = str(dtype).removeprefix("torch.")
    return DTYPE_NAMES.get(name, name)


def adapter_paths(adapters: Mapping[str, str | Path] | None) -> dict[str, str | Path]:
    """Returns the adapters to start with, by name. Raises ValueError if the argument is not a mapping."""
    if adapters is not None and not isinstance(adapters, Mapping):
        raise ValueError(f"adapters: {type(adapters).__name__} is not a mapping from names to paths")
    return dict(adapters or {})


def checked_folder(option: str, folder: str | Path) -> str:
    """Returns the resolved path. Raises ValueError if the folder does not exist, which is often a misspelling: every
    later load would be refused, and a watched folder would stay empty."""
    if not Path(folder).is_dir():
        raise ValueError(f"{option}: {str(folder)!r:.140} is not a folder")
    return str(Path(folder).resolve())
