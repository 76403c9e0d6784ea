"""Validator: the one check of requests. Every entry point calls it before anything is allocated.

A range is checked as `not (low <= value <= high)`, because NaN is neither below `low` nor above `high`.
"""

import math
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blora.adapters import MAX_ADDED_TOKENS
from blora.scheduler import RequestOutputKind, SamplingParams, StructuredOutputsParams

from ..errors import InvalidRequest
from ..facts import Facts
from ..identity.tenant import Tenant
from ..text.tokenizer import is_encodable

MAX_STOP_STRING_LENGTH = 256  # characters
MAX_PROMPT_LOGPROBS = 1 << 24  # of all positions of a prompt together: they take gigabytes
MAX_LISTED_TOKENS = 1 << 20  # in one list, of all samples together: the engine looks at them for 6 ms of each step
MAX_PROMPT_TOKENS = 1 << 23  # of all samples together, each of which has its prompt
MAX_BAD_WORDS = 512
MAX_BAD_WORD_LENGTH = 256  # characters
MAX_SALT_BYTES = 128
MAX_TENANT_LENGTH = 128  # characters
MAX_BIAS = 3e38  # of a logit: what a float32 holds
MOST_TOKENS = (1 << 31) - 1  # a larger number of tokens means the same, and no message could carry every int

FLOAT_RANGES = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.0, 10.0),
}
ABOVE_ZERO = ("top_p", "repetition_penalty")
INT_RANGES: dict[str, tuple[int, int | None]] = {
    "n": (1, None),
    "top_k": (-1, (1 << 31) - 1),
    "min_tokens": (0, None),
    "max_tokens": (1, None),
    "logprobs": (-1, None),
    "prompt_logprobs": (-1, None),
    "seed": (-(1 << 63), (1 << 63) - 1),
    "stream_interval": (1, (1 << 31) - 1),
    "truncate_prompt_tokens": (-1, None),
}
FLAGS = (
    "include_stop_str_in_output",
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)
OPTIONAL = ("max_tokens", "logprobs", "prompt_logprobs", "seed", "stream_interval", "truncate_prompt_tokens")
# Fields of vLLM that are not served -> their values that ask for nothing.
UNSERVED: dict[str, tuple[object, ...]] = {
    "extra_args": (None, {}),
    "flat_logprobs": (None, False),
    "logprob_token_ids": (None,),
    "prompt_logprob_token_ids": (None,),
    "prompt_logprob_start": (None, 0),
    "repetition_detection": (None,),
    "thinking_token_budget": (None, -1),
    "trace_decode_token_ids": (None,),
    "watermarking": (None, False),
}
# Fields of vLLM that change nothing here -> the reason, for a notice.
WITHOUT_EFFECT = {
    "spaces_between_special_tokens": "the tokenizer's decoder decides about spaces",
    "skip_clone": "a request always keeps a copy of its parameters",
    "skip_reading_prefix_cache": "answers are the same with the prefix cache and without",
    "routed_experts_prompt_start": "no served model routes tokens to experts",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of requests that the engine's options and the model's files set."""

    default_max_tokens: int | None = None  # a request with this max_tokens has only taken over the default
    max_n: int = 1024
    max_stops: int = 256  # strings, and as many tokens
    max_logprobs: int | None = 20  # None: as many as the vocabulary has


def most_listed(facts: Facts, limits: Limits) -> Mapping[str, int]:
    """Returns the most entries of each list of a request, for callers who count before they convert. Adapters may widen
    the vocabulary."""
    vocab_size = facts.vocab_size + MAX_ADDED_TOKENS
    tokens = {"prompt_token_ids": facts.max_model_len, "stop_token_ids": limits.max_stops}
    tokens |= {"logit_bias": vocab_size, "allowed_token_ids": vocab_size}
    return tokens | {"stop": limits.max_stops, "bad_words": MAX_BAD_WORDS}


def check_count(name: str, number: int, most: int) -> None:
    """Checks the length of a list. Raises InvalidRequest."""
    if number > most:
        what = "strings" if name in ("stop", "bad_words") else "tokens"
        raise InvalidRequest(name, f"{number} {what} are more than the {most} allowed")


def check_sampling(params: SamplingParams, facts: Facts, limits: Limits = Limits()) -> None:
    """Raises InvalidRequest naming the first field whose value is malformed, not finite or out of range."""
    for name in (*FLOAT_RANGES, *INT_RANGES):
        check_number(name, getattr(params, name))
    for name in FLAGS:
        _check_type(name, getattr(params, name), bool, "a boolean")
    for name, neutral in UNSERVED.items():
        if not _is_one_of(getattr(params, name), neutral):
            raise InvalidRequest(name, "is not supported; leave it out")
    _check_type("output_kind", params.output_kind, RequestOutputKind, "a RequestOutputKind")
    if params.structured_outputs is not None:
        _check_type("structured_outputs", params.structured_outputs, StructuredOutputsParams, "StructuredOutputsParams")
    if params.max_tokens is not None and params.min_tokens > params.max_tokens and not _is_left_to_us(params, limits):
        raise InvalidRequest("min_tokens", f"{params.min_tokens} is more than max_tokens, {params.max_tokens}")
    if params.truncate_prompt_tokens == 0:
        raise InvalidRequest("truncate_prompt_tokens", "0 would leave no token of the prompt")
    if params.n > limits.max_n:
        raise InvalidRequest("n", f"{params.n} is more than the {limits.max_n} of the option max_n")
    _check_lists(params, facts)
    _check_logprobs(params, facts, limits)
    _check_stops(params, limits)
    _check_strings("bad_words", params.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_LENGTH)
    check_sampled_tokens(params, facts, limits)


def _check_lists(params: SamplingParams, facts: Facts) -> None:
    """Checks types and sizes of lists that each sample has for itself. Their entries are checked in `token_lists`."""
    allowed, biases = params.allowed_token_ids, params.logit_bias
    if allowed is not None:
        _check_type("allowed_token_ids", allowed, Sequence, "a list of token ids")
        _check_size("allowed_token_ids", len(allowed), params.n, facts)
        if not len(allowed):
            raise InvalidRequest("allowed_token_ids", "is empty; None allows all tokens")
    if biases is not None:
        _check_type("logit_bias", biases, Mapping, "a mapping from token ids to numbers")
        _check_size("logit_bias", len(biases), params.n, facts)


def _check_size(name: str, number: int, num_samples: int, facts: Facts) -> None:
    check_count(name, number, facts.vocab_size)
    if number * num_samples > MAX_LISTED_TOKENS:
        raise InvalidRequest(name, f"{number} tokens for {num_samples} samples are more than {MAX_LISTED_TOKENS}")


def _check_logprobs(params: SamplingParams, facts: Facts, limits: Limits) -> None:
    most = facts.vocab_size if limits.max_logprobs is None else limits.max_logprobs
    for name in ("logprobs", "prompt_logprobs"):
        number = getattr(params, name)
        if number is not None and _num_logprobs(number, facts) > most:
            told = "the whole vocabulary" if number == -1 else f"{number}"
            raise InvalidRequest(name, f"{told} is more than the {most} of the option max_logprobs")


def _num_logprobs(number: int, facts: Facts) -> int:
    return facts.vocab_size if number == -1 else number


def with_all_logprobs(params: SamplingParams, num_prompt_tokens: int, facts: Facts) -> SamplingParams:
    """Returns checked parameters in which the whole vocabulary is a number. Raises InvalidRequest for logprobs of a
    prompt that would be too many."""
    asked = {name: getattr(params, name) for name in ("logprobs", "prompt_logprobs")}
    numbers = {name: _num_logprobs(number, facts) for name, number in asked.items() if number is not None}
    if numbers.get("prompt_logprobs", 0) * num_prompt_tokens > MAX_PROMPT_LOGPROBS:
        told = f"{numbers['prompt_logprobs']} for each of {num_prompt_tokens} tokens"
        raise InvalidRequest("prompt_logprobs", f"{told} are more than {MAX_PROMPT_LOGPROBS}")
    return replace(params, **numbers) if -1 in asked.values() else params  # type: ignore[arg-type]


def check_number(name: str, value: object) -> None:
    """Checks the value of a field that is a number. Raises InvalidRequest."""
    if name in FLOAT_RANGES:
        _check_float(name, value, *FLOAT_RANGES[name])
    elif value is not None or name not in OPTIONAL:
        _check_int(name, value, *INT_RANGES[name])


def _is_one_of(value: object, neutral: Iterable[object]) -> bool:
    """Compares with the types, because False equals 0, and an array equals nothing as a whole."""
    return any(type(value) is type(other) and value == other for other in neutral)


def ignored_fields(params: SamplingParams) -> Iterator[str]:
    """Yields the names of the fields that are set and have no effect."""
    defaults = SamplingParams()
    return (name for name in WITHOUT_EFFECT if not _is_one_of(getattr(params, name), (getattr(defaults, name), None)))


def check_sampled_tokens(params: SamplingParams, facts: Facts, limits: Limits = Limits()) -> None:
    """Checks the token ids that the parameters name. Raises InvalidRequest."""
    if params.stop_token_ids is not None:
        _check_type("stop_token_ids", params.stop_token_ids, Sequence, "a list of token ids")
        check_token_ids("stop_token_ids", params.stop_token_ids, facts, limits.max_stops)


def _check_type(name: str, value: object, kind: Any, what: str) -> None:
    if not isinstance(value, kind):
        raise InvalidRequest(name, f"{value!r:.80} is not {what}")


def as_plain(params: SamplingParams) -> SamplingParams:
    """Returns a copy of checked parameters in plain types, which can be sent: a numpy float becomes a float, a range a
    tuple. What the user assigns to the fields later does not reach it. The long lists, which go as LogitEdits, are left
    out."""
    values: dict[str, object] = {name: float(getattr(params, name)) for name in FLOAT_RANGES}
    for name in INT_RANGES:
        value = getattr(params, name)
        most = MOST_TOKENS if name in ("max_tokens", "truncate_prompt_tokens") else math.inf
        values[name] = None if value is None else min(int(value), most)
    values |= {name: getattr(params, name) for name in (*FLAGS, "output_kind")}
    values["stop"] = tuple(str(stop) for stop in params.stop_strings)
    values["stop_token_ids"] = tuple(int(token_id) for token_id in params.stop_token_ids or ())
    values["bad_words"] = tuple(str(word) for word in params.bad_strings)
    return SamplingParams(**values)  # type: ignore[arg-type]


def _check_float(name: str, value: object, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (low <= value <= high) or (name in ABOVE_ZERO and value == 0):  # type: ignore[operator]
        bound = "above" if name in ABOVE_ZERO else "from"
        raise InvalidRequest(name, f"{value!r} is not a number {bound} {low:g} to {high:g}")


def _check_int(name: str, value: object, low: int, high: int | None) -> None:
    integer = _as_integer(value)
    if integer is None or integer < low or (high is not None and integer > high):
        bound = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidRequest(name, f"{value!r} is not an integer {bound}")


def _check_stops(params: SamplingParams, limits: Limits) -> None:
    _check_strings("stop", params.stop, limits.max_stops, MAX_STOP_STRING_LENGTH)
    if params.stop_strings and not params.detokenize:
        raise InvalidRequest("stop", "stop strings need detokenize; set it to True")


def _check_strings(name: str, value: str | Sequence[str] | None, max_number: int, max_length: int) -> None:
    """Checks a text or a list of texts."""
    if value is None:
        return
    _check_type(name, value, Sequence, "a string or a list of strings")
    strings = (value,) if isinstance(value, str) else value
    check_count(name, len(strings), max_number)
    for string in strings:
        if not isinstance(string, str) or not 1 <= len(string) <= max_length:
            raise InvalidRequest(name, f"{string!r:.80} is not a string of 1 to {max_length} characters")
        if not is_encodable(string):
            raise InvalidRequest(name, "is not valid Unicode: it holds a lone surrogate")


def check_biases(biases: Mapping[int, float], facts: Facts) -> None:
    """Checks entries of logit_bias. Raises InvalidRequest."""
    check_token_ids("logit_bias", biases, facts, facts.vocab_size)
    values = biases.values()
    if set(map(type, values)) <= {float} and all(map(math.isfinite, values)):  # without a Python loop over them
        values = [min(values, default=0.0), max(values, default=0.0)]  # type: ignore[assignment]
    for bias in values:
        _check_float("logit_bias", bias, -MAX_BIAS, MAX_BIAS)


def check_token_ids(name: str, token_ids: Collection[int], facts: Facts, max_number: int) -> None:
    """Checks ids against the width of the logits, not the tokenizer's length: an index beyond that width would reach
    memory of other rows. Raises InvalidRequest."""
    check_count(name, len(token_ids), max_number)
    if not token_ids or (_are_plain(token_ids) and min(token_ids) >= 0 and max(token_ids) < facts.vocab_size):
        return
    for token_id in token_ids:
        integer = _as_integer(token_id)
        if integer is None or not 0 <= integer < facts.vocab_size:
            raise InvalidRequest(name, f"{token_id!r:.80} is not a token id from 0 to {facts.vocab_size - 1}")


def as_token_ids(name: str, token_ids: Iterable[object]) -> list[int]:
    """Returns token ids as ints. Any type of integer is accepted, such as numpy's; their range is not checked."""
    values = list(token_ids)
    return values if _are_plain(values) else [_token_id(name, value) for value in values]  # type: ignore[return-value]


def _token_id(name: str, value: object) -> int:
    integer = _as_integer(value)
    if integer is None:
        raise InvalidRequest(name, f"{value!r:.80} is not a token id")
    return integer


def _are_plain(values: Iterable[object]) -> bool:
    """Returns whether all values are ints, without a Python loop over them."""
    return set(map(type, values)) <= {int}


def _as_integer(value: object) -> int | None:
    """Returns the value as an int, or None if it is no integer: a number with a point, and a boolean too."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_tenant(tenant: object) -> Tenant:
    """The tenant that a call names, or was given by a door. Raises InvalidRequest."""
    if isinstance(tenant, Tenant):
        _check_tenant_name(tenant.name)
        return tenant
    return Tenant(_check_tenant_name(tenant))


def _check_tenant_name(tenant: object) -> str:
    if not isinstance(tenant, str) or len(tenant) > MAX_TENANT_LENGTH or not tenant.isprintable():
        raise InvalidRequest("tenant", f"is not a printable text of at most {MAX_TENANT_LENGTH} characters")
    return tenant


def check_salt(salt: object) -> bytes:
    if salt is None:
        return b""
    encoded = salt.encode(errors="surrogatepass") if isinstance(salt, str) else b""
    if not isinstance(salt, str) or len(encoded) > MAX_SALT_BYTES:
        raise InvalidRequest("cache_salt", f"is not a text of at most {MAX_SALT_BYTES} bytes")
    return encoded


def num_kept_tokens(params: SamplingParams, facts: Facts) -> int | None:
    """Returns the number of tokens to which a longer prompt is cut; None if it is not cut. -1 cuts it to what leaves
    room for max_tokens, or, where nothing would be left of it, for the least output that was asked for."""
    if params.truncate_prompt_tokens != -1:
        return params.truncate_prompt_tokens
    least = max(params.min_tokens, 1)
    asked = least if params.max_tokens is None else max(params.max_tokens, least)
    return max(facts.max_model_len - (asked if asked < facts.max_model_len else least), 1)


def resolve_max_tokens(
    prompt: Sequence[int],
    params: SamplingParams,
    num_adapter_pages: int,
    facts: Facts,
    limits: Limits = Limits(),
) -> int:
    """Checks that the prompt leaves room for output, and that the memory can hold both. Returns the most tokens to
    generate, which is max_tokens, or the room that the model leaves if that is less. Raises InvalidRequest."""
    check_token_ids("prompt", prompt, facts, facts.max_model_len)
    if not prompt:
        raise InvalidRequest("prompt", "has no token")
    if len(prompt) * params.n > MAX_PROMPT_TOKENS:
        raise InvalidRequest(
            "n", f"{params.n} times {len(prompt)} tokens of the prompt are more than {MAX_PROMPT_TOKENS}"
        )
    room = facts.max_model_len - len(prompt)
    if room < 1:
        limit = f"max_model_len, {facts.max_model_len} tokens"
        raise InvalidRequest("prompt", f"{len(prompt)} tokens fill {limit}, and leave no room for output")
    max_tokens = room if params.max_tokens is None else min(max(params.max_tokens, params.min_tokens), room)
    if _is_left_to_us(params, limits):
        room_in_memory = (facts.num_pages - num_adapter_pages) * facts.block_size - len(prompt)
        max_tokens = max(min(max_tokens, room_in_memory), 1)
    if params.min_tokens > max_tokens:
        raise InvalidRequest("min_tokens", f"{params.min_tokens} is more than the {max_tokens} tokens that fit")
    _check_pages(len(prompt) + max_tokens, num_adapter_pages, facts)
    return max_tokens


def _is_left_to_us(params: SamplingParams, limits: Limits) -> bool:
    """Returns whether nobody insists on max_tokens. A default that made a request fail would be worse than none."""
    return params.max_tokens is None or params.max_tokens == limits.default_max_tokens


def _check_pages(num_tokens: int, num_adapter_pages: int, facts: Facts) -> None:
    num_pages = facts.num_blocks(num_tokens) + num_adapter_pages
    if num_pages > facts.num_pages:
        raise InvalidRequest("max_tokens", f"the request needs {num_pages} pages, the memory has {facts.num_pages}")
