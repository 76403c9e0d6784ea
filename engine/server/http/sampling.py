"""Fields of a request over HTTP -> SamplingParams. The engine's validator checks the values."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from blora.scheduler import SamplingParams

from ...errors import InvalidRequest
from ...front_end.validator import check_count
from .requests import GenerationBody, is_given, listed
from .structured import structured_outputs

# Fields that have the same name and meaning in SamplingParams.
SAME = (
    *("n", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "max_tokens", "min_tokens", "include_stop_str_in_output", "ignore_eos"),
    *("skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens", "prompt_logprobs"),
)
LISTS: Mapping[str, Any] = {
    "stop": str | list[str],
    "stop_token_ids": list[int],
    "bad_words": str | list[str],
    "allowed_token_ids": list[int],
    "logit_bias": dict[str, float],
}
MAX_LISTED_BYTES = 512 << 10  # of all lists of a request: they are read in some milliseconds


def sampling_params(
    body: GenerationBody, defaults: SamplingParams, most_listed: Mapping[str, int], **own: Any
) -> SamplingParams:
    """own: fields that the caller has read, of which None is what is left out. Raises InvalidRequest."""
    given = {name: getattr(body, name) for name in SAME} | _lists(body, most_listed) | own
    given["structured_outputs"] = structured_outputs(body)
    values = {name: value for name, value in given.items() if value is not None}
    for name in ("logprobs", "prompt_logprobs"):
        if values.get(name, 0) < 0:  # it would not fit an answer
            raise InvalidRequest(name, f"{values[name]} is below 0; the whole vocabulary is reported in process only")
    return replace(defaults, **values)


def _lists(body: GenerationBody, most_listed: Mapping[str, int]) -> dict[str, Any]:
    given = {name: getattr(body, name) for name in LISTS if is_given(getattr(body, name))}
    size = sum(len(bytes(raw)) for raw in given.values())
    if size > MAX_LISTED_BYTES:
        raise InvalidRequest(next(iter(given)), f"is in lists of {size} bytes; at most {MAX_LISTED_BYTES} are read")
    values = {name: listed(name, raw, LISTS[name]) for name, raw in given.items()}
    for name, value in values.items():
        if not isinstance(value, str):
            check_count(name, len(value), most_listed[name])
    if "logit_bias" in values:
        values["logit_bias"] = _biases(values["logit_bias"])
    return values


def _biases(biases: Mapping[str, float]) -> dict[int, float]:
    try:
        return {int(token_id): bias for token_id, bias in biases.items()}
    except ValueError:
        raise InvalidRequest("logit_bias", "has a key that is no token id") from None
