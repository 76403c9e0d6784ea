"""ResolvedAdapters: the adapters of one request, as the user named them and as the contents that these names mean.

Several adapters are summed, unmerged, in the order named, as by PEFT's `add_weighted_adapter(combination_type="cat")`.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blora.adapters import MAX_ADDED_TOKENS, ImageTable, base_name
from blora.scheduler import AdapterUse

from ..adapter_store.catalog import AdapterCatalog, Looks
from ..errors import InvalidRequest
from ..facts import Facts
from ..outputs import LoRARequest, LoRAUse
from ..text.tokenizer import Tokenizer

# One adapter, by name or as a LoRARequest; several, in a sequence or as name -> scale; None is the base model.
Adapter = LoRARequest | str | Sequence[LoRARequest | str] | Mapping[str, float] | None

MAX_ADAPTERS = 8  # in one request
MAX_SCALE = 100.0  # of a scale's absolute value


@dataclass(frozen=True, slots=True)
class ResolvedAdapters:
    """A call is resolved once, when it is checked, and what follows uses this value. Only a call in whose batch
    adapters have to be loaded first is resolved a second time after that: then its names mean what is loaded."""

    requests: tuple[LoRARequest, ...]  # as the user named them; none is the base model
    tables: tuple[ImageTable, ...]  # of the loaded adapters among them, in the same order
    to_load: tuple[LoRARequest, ...]  # the adapters among them that have to be loaded first
    tokenizer: Tokenizer  # reads the prompt and writes the answer; adapters to load may call for another one
    facts: Facts  # the request is checked against them; as wide as adapters to load may make them

    @property
    def digests(self) -> list[str]:
        return [table.digest for table in self.tables]

    @property
    def uses(self) -> tuple[AdapterUse, ...]:
        """Content and scale of each adapter."""
        pairs = zip(self.tables, self.requests, strict=True)
        # -0.0 becomes 0.0: equal scales are equal bits.
        return tuple((table.digest, float(request.lora_scale) + 0.0) for table, request in pairs)

    @property
    def names(self) -> list[str]:
        """Without the numbers of versions."""
        return [base_name(request.lora_name) for request in self.requests]

    @property
    def lora_request(self) -> LoRAUse:
        """Returns the adapters as outputs show them."""
        return self.requests if len(self.requests) > 1 else next(iter(self.requests), None)

    def find_activation(self, prompt: Sequence[int]) -> int:
        """The first position of a prompt that the adapters change: 0, or for an activated LoRA (aLoRA) the position
        where its invocation tokens occur last. Raises InvalidRequest when they do not occur."""
        tokens = next((list(table.invocation_tokens) for table in self.tables if table.invocation_tokens), None)
        if tokens is None:
            return 0
        for start in range(len(prompt) - len(tokens), -1, -1):
            if prompt[start] == tokens[0] and list(prompt[start : start + len(tokens)]) == tokens:
                return start
        raise InvalidRequest("prompt", f"lacks the tokens that invoke its adapter: {tokens[:32]}")


def brings_path(adapter: Adapter) -> bool:
    """Whether a part of an unchecked choice of adapters brings a path."""
    return any(isinstance(part, LoRARequest) and part.lora_path for part in named_in(adapter))


def folders_to_look_at(adapter: Adapter, catalog: AdapterCatalog) -> list[str]:
    """The folders of an unchecked choice of adapters whose files may have changed since they were loaded."""
    requests = [part for part in named_in(adapter) if isinstance(part, LoRARequest) and isinstance(part.lora_name, str)]
    return [folder for request in requests if (folder := catalog.folder_to_look_at(request)) is not None]


def resolve(adapter: Adapter, catalog: AdapterCatalog, looks: Looks) -> ResolvedAdapters:
    """Resolves the adapters of a call. looks: at `folders_to_look_at`. Raises AdapterNotFound for one that is not
    loaded and has no path, InvalidRequest for adapters that cannot be summed."""
    requests = read_adapters(adapter)
    to_load = tuple(request for request in requests if catalog.is_to_load(request, looks))
    for request in to_load:
        catalog.check_name(request.lora_name)
        catalog.check_path(request.lora_path)
    return _resolve(requests, to_load, catalog)


def resolve_loaded(requests: tuple[LoRARequest, ...], catalog: AdapterCatalog) -> ResolvedAdapters:
    """Resolves adapters that are all loaded now. Raises AdapterNotFound for an adapter that has gone meanwhile,
    InvalidRequest for adapters that cannot be summed."""
    return _resolve(requests, (), catalog)


def _resolve(
    requests: tuple[LoRARequest, ...], to_load: tuple[LoRARequest, ...], catalog: AdapterCatalog
) -> ResolvedAdapters:
    loaded = [request for request in requests if request not in to_load]
    tables = tuple(catalog.table_of(catalog.resolve(request.lora_name)) for request in loaded)
    digests = [table.digest for table in tables]
    check_distinct(digests, loaded)
    for request, table in zip(loaded, tables, strict=True):
        check_partners(request, table, len(requests))
    facts = _widest(catalog.facts) if to_load else catalog.facts_of(digests)
    return ResolvedAdapters(requests, tables, to_load, catalog.tokenizer_of(digests), facts)


def _widest(facts: Facts) -> Facts:
    """The facts with as many added tokens as an adapter may bring."""
    return replace(facts, vocab_size=facts.vocab_size + MAX_ADDED_TOKENS)


def read_adapters(adapter: Adapter) -> tuple[LoRARequest, ...]:
    """The adapters that a user named, in order; none for the base model. Raises InvalidRequest."""
    if adapter is None:
        return ()
    requests = tuple(map(_read_one, named_in(adapter)))
    if not requests:
        raise InvalidRequest("lora_request", "names no adapter; None is the base model")
    check_number(len(requests))
    check_distinct([request.lora_name for request in requests], requests)
    return requests


def check_number(num_adapters: int) -> None:
    """Raises InvalidRequest for more adapters than one request may sum."""
    if num_adapters > MAX_ADAPTERS:
        raise InvalidRequest("lora_request", f"{num_adapters} adapters, at most {MAX_ADAPTERS} are summed")


def named_in(adapter: Adapter) -> Sequence[Any]:
    """The parts of a user's choice of adapters, unchecked."""
    if isinstance(adapter, Mapping):
        return [LoRARequest(name, lora_scale=scale) for name, scale in adapter.items()]
    if isinstance(adapter, Sequence) and not isinstance(adapter, str | bytes | bytearray):
        return adapter
    return [] if adapter is None else [adapter]


def _read_one(adapter: Any) -> LoRARequest:
    request = LoRARequest(adapter) if isinstance(adapter, str) else adapter
    if not isinstance(request, LoRARequest):
        raise InvalidRequest("lora_request", f"{type(adapter).__name__} is neither a name nor a LoRARequest")
    _check_int_id(request)
    scale = request.lora_scale
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not is_number or not abs(scale) <= MAX_SCALE:  # NaN compares as False
        name = f"lora_scale of {request.lora_name!r:.140}"
        raise InvalidRequest("lora_request", f"{name}: {scale!r} is not a number from {-MAX_SCALE:g} to {MAX_SCALE:g}")
    return request


def _check_int_id(request: LoRARequest) -> None:
    try:
        operator.index(request.lora_int_id)
    except TypeError:
        reason = f"lora_int_id of {request.lora_name!r:.140}: {request.lora_int_id!r:.80} is not an integer"
        raise InvalidRequest("lora_request", reason) from None


def check_distinct(identities: Sequence[object], requests: Sequence[LoRARequest]) -> None:
    """Raises InvalidRequest when two are the same: an adapter named twice is more likely a mistake than the wish for
    the sum of two scales."""
    for index, identity in enumerate(identities):
        if identity in identities[:index]:
            raise InvalidRequest("lora_request", f"{requests[index].lora_name!r:.140} is an adapter named before")


def check_partners(request: LoRARequest, table: ImageTable, num_adapters: int) -> None:
    """Raises InvalidRequest for an adapter that cannot be summed with others, or scaled. num_adapters: counts all
    adapters of the request, this one included."""
    name = f"{request.lora_name!r:.140}"
    if table.invocation_tokens and num_adapters > 1:
        raise InvalidRequest("lora_request", f"{name} is an activated LoRA (aLoRA), which takes no partner")
    if table.is_exclusive and (num_adapters > 1 or request.lora_scale != 1):
        raise InvalidRequest(
            "lora_request", f"{name} is no sum (DoRA or trained rows), and takes no scale and no partner"
        )
