"""Generation defaults from a model's own files: sampling parameters and the tokens that end a text."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blora.scheduler import SamplingParams

from ..errors import InvalidRequest
from ..model_files.config import read_json
from .validator import check_number

logger = logging.getLogger(__name__)

# name in generation_config.json -> name in SamplingParams
SAMPLING_FIELDS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    sampling: SamplingParams
    eos_token_ids: frozenset[int]

    def within(self, vocab_size: int, max_model_len: int) -> "GenerationDefaults":
        """Returns these defaults without values beyond the engine's limits: a default must not make requests fail."""
        max_tokens = self.sampling.max_tokens
        if max_tokens is not None and max_tokens >= max_model_len:
            max_tokens = None  # as much as fits
        eos = frozenset(token_id for token_id in self.eos_token_ids if 0 <= token_id < vocab_size)
        return GenerationDefaults(replace(self.sampling, max_tokens=max_tokens), eos)


def load_generation_defaults(model: Path, eos_token_id: int | None, source: str = "auto") -> GenerationDefaults:
    """Returns a model's defaults. model: a folder or a .gguf file. eos_token_id: the tokenizer's. source: "auto" reads
    the sampling fields, "vllm" ignores them."""
    folder = model if model.is_dir() else model.parent
    generation = _read(folder / "generation_config.json") if model.is_dir() else {}
    config = _read(folder / "config.json") if model.is_dir() else {}
    eos = _token_ids(generation.get("eos_token_id")) | _token_ids(config.get("eos_token_id"))
    sampling = SamplingParams()
    if source == "auto":
        sampling = replace(sampling, **_served_fields(generation))
    return GenerationDefaults(sampling, eos | _token_ids(eos_token_id))


def _served_fields(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of SamplingParams that a model's file sets. A value that no request may have is left out: it
    would make every request fail that does not set the field itself."""
    fields = {}
    for theirs, ours in SAMPLING_FIELDS.items():
        value = generation.get(theirs)
        if value is None:
            continue
        try:
            check_number(ours, value)
            fields[ours] = value
        except InvalidRequest as error:
            logger.warning("generation_config.json: %s is ignored: %s", theirs, error.reason)
    return fields


def _token_ids(value: Any) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(entry for entry in values if isinstance(entry, int))


def _read(path: Path) -> Mapping[str, Any]:
    content = read_json(path) if path.exists() else {}
    return content if isinstance(content, dict) else {}
