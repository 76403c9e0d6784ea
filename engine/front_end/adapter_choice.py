"""Composition: the adapters of one request: how a user names them, which go together, and where they are activated.

Their changes are summed, unmerged, in the order named, as PEFT's `add_weighted_adapter(combination_type="cat")` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from blora.adapters import ImageTable

from ..errors import InvalidRequest
from ..outputs import LoRARequest

# One adapter, by name or as a LoRARequest; several, in a sequence or as name -> scale; None is the base model.
Adapter = LoRARequest | str | Sequence[LoRARequest | str] | Mapping[str, float] | None

MAX_ADAPTERS = 8  # of one request
MAX_SCALE = 100.0  # either way


def read_adapters(adapter: Adapter) -> tuple[LoRARequest, ...]:
    """The adapters named, in order; none for the base model. Raises InvalidRequest."""
    if adapter is None:
        return ()
    requests = tuple(map(_read_one, named_in(adapter)))
    if not requests:
        raise InvalidRequest("lora_request", "names no adapter; None is the base model")
    if len(requests) > MAX_ADAPTERS:
        raise InvalidRequest("lora_request", f"{len(requests)} adapters, at most {MAX_ADAPTERS} are summed")
    check_distinct([request.lora_name for request in requests], requests)
    return requests


def named_in(adapter: Adapter) -> Sequence[Any]:
    """What one request names, not looked at any further."""
    if isinstance(adapter, Mapping):
        return [LoRARequest(name, lora_scale=scale) for name, scale in adapter.items()]
    if isinstance(adapter, Sequence) and not isinstance(adapter, str | bytes | bytearray):
        return adapter
    return [] if adapter is None else [adapter]


def _read_one(adapter: Any) -> LoRARequest:
    request = LoRARequest(adapter) if isinstance(adapter, str) else adapter
    if not isinstance(request, LoRARequest):
        raise InvalidRequest("lora_request", f"{type(adapter).__name__} is neither a name nor a LoRARequest")
    scale = request.lora_scale
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not is_number or not abs(scale) <= MAX_SCALE:  # NaN is not
        name = f"lora_scale of {request.lora_name!r:.140}"
        raise InvalidRequest("lora_request", f"{name}: {scale!r} is not a number from {-MAX_SCALE:g} to {MAX_SCALE:g}")
    return request


def check_distinct(identities: Sequence[object], requests: Sequence[LoRARequest]) -> None:
    """Named twice, an adapter is more likely a mistake than a wish for the sum of two scales."""
    for index, identity in enumerate(identities):
        if identity in identities[:index]:
            raise InvalidRequest("lora_request", f"{requests[index].lora_name!r:.140} is an adapter named before")


def check_partners(request: LoRARequest, table: ImageTable, num_adapters: int) -> None:
    """Raises InvalidRequest for an adapter that cannot be summed with others, or scaled. num_adapters: of the request,
    this one included."""
    name = f"{request.lora_name!r:.140}"
    if table.invocation_tokens and num_adapters > 1:
        raise InvalidRequest("lora_request", f"{name} is an activated LoRA (aLoRA), which takes no partner")
    if table.is_exclusive and (num_adapters > 1 or request.lora_scale != 1):
        raise InvalidRequest(
            "lora_request", f"{name} is no sum (DoRA or trained rows), and takes no scale and no partner"
        )


def find_activation(tables: Sequence[ImageTable], prompt: Sequence[int]) -> int:
    """The first position of a prompt that its adapters change: 0, or for an activated LoRA (aLoRA) where its invocation
    tokens begin for the last time. Raises InvalidRequest when they do not occur."""
    tokens = next((list(table.invocation_tokens) for table in tables if table.invocation_tokens), None)
    if tokens is None:
        return 0
    for start in range(len(prompt) - len(tokens), -1, -1):
        if prompt[start] == tokens[0] and list(prompt[start : start + len(tokens)]) == tokens:
            return start
    raise InvalidRequest("prompt", f"lacks the tokens that invoke its adapter: {tokens[:32]}")
