"""Options of vLLM that have no counterpart here: they are accepted, with a notice of what takes their place."""

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

REPLACED = {
    "enable_lora": "adapters can always be loaded, and cost nothing until they are used",
    "max_loras": "there are no slots: KV blocks and adapters share one arena, see memory=",
    "max_lora_rank": "every rank is stored at its true size, see memory=",
    "max_cpu_loras": "every loaded adapter is kept in host memory",
    "gpu_memory_utilization": "use memory=, in bytes or as a fraction",
}


def drop_replaced_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those that are replaced."""
    for name in REPLACED.keys() & options.keys():
        logger.warning("%s is ignored: %s", name, REPLACED[name])
    return {name: value for name, value in options.items() if name not in REPLACED}
