"""Calls: takes one call for many prompts apart into one Call for each. Checks shapes only; imports no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NotRequired, Protocol, TypedDict, cast

from blora.scheduler import RequestOutputKind, SamplingParams

from ..errors import InvalidRequest
from ..identity.tenant import Tenant
from ..outputs import LoRARequest
from ..text.chat import Message
from .adapter_choice import Adapter, named_in


class TextPrompt(TypedDict):
    """A prompt by its text."""

    prompt: str
    cache_salt: NotRequired[str]  # only requests with the same one share cached prefixes


class TokensPrompt(TypedDict):
    """A prompt by its tokens."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]  # the text of these tokens; it is shown, and not read
    cache_salt: NotRequired[str]


class TokenArray(Protocol):
    """An array of token ids of any library, such as numpy or torch: one prompt, or a batch of them in rows."""

    @property
    def ndim(self) -> int: ...
    @property
    def shape(self) -> Any: ...
    def __len__(self) -> int: ...
    def tolist(self) -> Any: ...


Prompt = str | Sequence[int] | TokenArray | TextPrompt | TokensPrompt | Mapping[str, Any]
# Keys beside input_ids in what the tokenizers of transformers return; only the mask is read.
ENCODING_KEYS = (
    "attention_mask",
    "token_type_ids",
    "special_tokens_mask",
    "offset_mapping",
    "length",
    "overflowing_tokens",
    "num_truncated_tokens",
)
Conversation = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt and a user's arguments for it."""

    prompt: Prompt
    sampling: SamplingParams | None = None
    adapter: Adapter = None
    priority: int = 0
    tenant: str | Tenant = ""
    deadline: float | None = None  # time.monotonic(), from when on nobody waits for the answer
    first_token_deadline: float | None = None  # from when on nobody waits for the first token


def pair_up(
    prompts: Prompt | Sequence[Prompt],
    sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    lora_request: Adapter | Sequence[Adapter],
    priority: Sequence[int] | None,
    tenant: str | Tenant | Sequence[str | Tenant] = "",
    deadline: float | None = None,
    first_token_deadline: float | None = None,
) -> list[Call]:
    """Returns one Call for each prompt. A list pairs one to one with the prompts; a single value goes with each.
    Raises InvalidRequest naming the argument.

    So several adapters for all prompts are a mapping; a sequence of adapters for one prompt is an entry of the list.
    """
    batch = _as_batch(prompts)
    samplings = _pair("sampling_params", sampling_params, len(batch), SamplingParams)
    adapters = _pair("lora_request", lora_request, len(batch), LoRARequest | str)
    priorities = _pair("priority", 0 if priority is None else priority, len(batch), int)
    tenants = _pair("tenant", tenant, len(batch), str | Tenant)
    _check_paths(adapters)
    rows = zip(batch, samplings, adapters, priorities, tenants, strict=True)
    return [Call(*row, deadline, first_token_deadline) for row in rows]


def kind_of_stream(calls: Sequence[Call]) -> RequestOutputKind:
    """Returns how the rows of a stream are shown."""
    kinds = {None if call.sampling is None else call.sampling.output_kind for call in calls}
    return RequestOutputKind.FINAL_ONLY if kinds == {RequestOutputKind.FINAL_ONLY} else RequestOutputKind.DELTA


def first_deadline(calls: Sequence[Call]) -> float | None:
    """Returns the deadline that passes first, or None. Raises InvalidRequest."""
    return _first("deadline", [call.deadline for call in calls])


def first_token_deadline(calls: Sequence[Call]) -> float | None:
    """The same for the deadlines of first tokens."""
    return _first("first_token_deadline", [call.first_token_deadline for call in calls])


def _first(name: str, times: Sequence[Any]) -> float | None:
    given = [time for time in times if time is not None]
    for time in given:
        if isinstance(time, bool) or not isinstance(time, int | float) or not math.isfinite(time):
            raise InvalidRequest(name, f"{time!r:.80} is not a time of the event loop in seconds")
    return min(given, default=None)


def kept(sampling_params: Any) -> Any:
    """Returns a copy of parameters, or of each in a list, that what is assigned to the originals does not reach."""
    if isinstance(sampling_params, SamplingParams):
        return sampling_params.clone()
    return list(map(kept, sampling_params)) if _is_list(sampling_params) else sampling_params


def chat_prompts(messages: Conversation | Sequence[Conversation], **arguments: Any) -> list[Prompt]:
    """Returns the prompt of each conversation, with the same arguments of its template. A list of messages is one
    conversation."""
    return [{"messages": conversation, **arguments} for conversation in _conversations(messages)]


def _conversations(messages: Conversation | Sequence[Conversation]) -> list[Conversation]:
    if not _is_list(messages):
        raise InvalidRequest("messages", f"{type(messages).__name__} is neither a conversation nor a list of them")
    if len(messages) > 0 and isinstance(messages[0], Mapping):
        return [cast(Conversation, messages)]
    return list(cast(Sequence[Conversation], messages))


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Returns a list of prompts. A list or an array of integers is one prompt."""
    if isinstance(prompts, Mapping):
        return _rows_of(prompts) if "input_ids" in prompts else [prompts]
    if isinstance(prompts, str) or _begins_with_a_token(prompts):
        return [cast(Prompt, prompts)]
    if not _is_list(prompts) and not is_array(prompts):
        raise InvalidRequest("prompts", f"{type(prompts).__name__} is neither a prompt nor a list of prompts")
    return list(cast(Sequence[Prompt], prompts))


def _rows_of(encoding: Mapping[str, Any]) -> list[Prompt]:
    """Returns the prompts of what a tokenizer of transformers returned, for one text or for many."""
    rows, masks = encoding["input_ids"], encoding.get("attention_mask")
    if not (_is_list(rows) or is_array(rows)) or _begins_with_a_token(rows):
        return [encoding]
    if masks is not None and len(masks) != len(rows):
        raise InvalidRequest("attention_mask", f"{len(masks)} rows for {len(rows)} prompts")
    others = {name: value for name, value in encoding.items() if name not in ("input_ids", *ENCODING_KEYS)}
    return [
        {"input_ids": row, "attention_mask": None if masks is None else masks[index], **others}
        for index, row in enumerate(rows)
    ]


def _begins_with_a_token(values: Any) -> bool:
    """Whether a list or an array begins with an integer, as a prompt does; in a batch, a prompt comes first."""
    if not (_is_list(values) or is_array(values)) or not len(values):
        return False
    first = next(iter(values))
    return hasattr(first, "__index__") and getattr(first, "ndim", 0) == 0


def is_array(value: object) -> bool:
    """Whether a value is an array of any library; none of them is imported here."""
    return hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _pair(name: str, value: Any, num_prompts: int, kind: Any) -> list[Any]:
    """Returns one value for each prompt. Raises InvalidRequest for a list of another length than the prompts'."""
    if isinstance(value, kind) or not _is_list(value):
        return [value] * num_prompts
    if len(value) != num_prompts:
        raise InvalidRequest(name, f"{len(value)} values for {num_prompts} prompts")
    return list(value)


def _check_paths(adapters: Sequence[Adapter]) -> None:
    """Raises InvalidRequest for a name with two paths in one batch: prompts for one path would get the other's
    adapter."""
    paths: dict[str, str] = {}
    for adapter in chain.from_iterable(map(named_in, adapters)):
        if isinstance(adapter, LoRARequest) and adapter.lora_path:
            path = str(adapter.lora_path)
            if paths.setdefault(adapter.lora_name, path) != path:
                raise InvalidRequest("lora_request", f"{adapter.lora_name!r:.140} is given two paths in one batch")
