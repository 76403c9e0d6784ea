"""FrontEnd: everything between a user's call and the engine's requests that is the same in process and over a wire.

Owns the tokenizer, the catalog of adapters, the count of their images and the texts of unfinished requests. Runs no
step and imports no torch.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blora.adapters import MAX_ADDED_TOKENS, base_name
from blora.scheduler import AdapterUse, Request, SamplingParams

from ..adapter_store.catalog import AdapterCatalog
from ..adapter_store.image_ledger import ImageLedger
from ..config import EngineConfig
from ..errors import InvalidRequest, QueueFull
from ..facts import Facts
from ..memory.budget import parse_memory, usable_memory
from ..outputs import AdapterUsage, LoRARequest
from ..text.tokenizer import Message, Tokenizer
from .adapter_choice import Adapter, check_distinct, check_partners, find_activation, read_adapters
from .calls import Call, Prompt
from .generation_config import GenerationDefaults
from .output_processor import OutputProcessor, UserRequest
from .validator import (
    as_plain,
    as_token_ids,
    check_messages,
    check_salt,
    check_sampled_tokens,
    check_sampling,
    check_tenant,
    check_text,
    resolve_max_tokens,
)

# What a prompt that is a dict holds one of -> what may go with it.
PROMPT_FORMS: dict[str, tuple[str, ...]] = {
    "prompt": (),
    "prompt_token_ids": (),
    "messages": ("add_generation_prompt",),
}


@dataclass(frozen=True, slots=True)
class Checked:
    """A call in which nothing is wrong; its adapters may be still to load."""

    prompt: Prompt
    tokenizer: Tokenizer  # that `text` and `token_ids` were made by
    text: str | None  # None for tokens and for a conversation
    token_ids: list[int]
    salt: bytes
    sampling: SamplingParams
    adapters: tuple[LoRARequest, ...]  # to be summed in this order
    priority: int
    tenant: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked request with its adapters loaded: the user's side of it and the engine's."""

    user: UserRequest
    requests: list[Request]  # one per sample


class FrontEnd:
    def __init__(
        self,
        tokenizer: Tokenizer,
        defaults: GenerationDefaults,
        facts: Facts,
        config: EngineConfig,
    ) -> None:
        self.defaults = defaults.within(facts.vocab_size, facts.max_model_len)
        self.facts = facts
        self.adapters = AdapterCatalog(facts, config.max_adapter_versions, tokenizer)
        self.ledger = ImageLedger(_host_bytes(config))
        self.outputs = OutputProcessor(self._end)
        self.usage = AdapterUsage()  # of all requests, those for the base model too
        self._config = config
        self._seeds = random.Random(config.seed)  # None seeds from the system
        self._next_id = 0

    # Requests.

    def check(self, call: Call) -> Checked:
        """Checks and tokenises a call, changing nothing. Raises InvalidRequest, AdapterNotFound."""
        sampling = self.defaults.sampling if call.sampling is None else call.sampling
        if not isinstance(sampling, SamplingParams):
            raise InvalidRequest("sampling_params", f"{type(sampling).__name__} is not SamplingParams")
        priority = call.priority
        if isinstance(priority, bool) or not isinstance(priority, int) or not -(1 << 31) <= priority < 1 << 31:
            raise InvalidRequest("priority", f"{priority!r} is not a 32-bit integer")
        tenant = check_tenant(call.tenant)
        adapters = self._check_adapters(call.adapter)
        facts = self._facts_for(adapters)
        check_sampling(sampling, facts)
        sampling = as_plain(sampling)
        tokenizer = self.tokenizer_of(adapters)
        text, token_ids, salt = self._read_prompt(call.prompt, tokenizer)
        checked = Checked(call.prompt, tokenizer, text, token_ids, salt, sampling, adapters, priority, tenant)
        resolve_max_tokens(token_ids, sampling, self.adapters.num_pages(()), facts)  # what cannot be with any adapter
        return checked

    def _check_adapters(self, adapter: Adapter) -> tuple[LoRARequest, ...]:
        """Only None is the base model. What has no path to load from has to be loaded, and what is loaded has to go
        with the others before these are."""
        requests = read_adapters(adapter)
        digests: dict[LoRARequest, str] = {}  # of what is loaded
        for request in requests:
            if not self.adapters.is_to_load(request):
                digests[request] = self.adapters.resolve(request.lora_name)
            else:
                self.adapters.check_name(request.lora_name)
                self.adapters.check_path(request.lora_path)
        self._check_sum(digests, len(requests))
        return requests

    def _check_sum(self, digests: Mapping[LoRARequest, str], num_adapters: int) -> None:
        check_distinct(list(digests.values()), list(digests))
        for request, digest in digests.items():
            check_partners(request, self.adapters.table_of(digest), num_adapters)

    def adapters_to_load(self, calls: Sequence[Checked]) -> list[LoRARequest]:
        """What has to be loaded before these calls can be prepared, each name once."""
        requests = [request for call in calls for request in call.adapters]
        return list({request.lora_name: request for request in requests if self.adapters.is_to_load(request)}.values())

    def check_room(self, calls: Sequence[Checked]) -> None:
        """Raises QueueFull when these calls would be too many beside what is unfinished."""
        self._check_room(sum(call.sampling.n for call in calls))

    def _check_room(self, num_new: int) -> None:
        num_unfinished = self.outputs.num_unfinished
        limit = self._config.max_num_queued_reqs
        if num_unfinished + num_new > limit:
            raise QueueFull(f"{num_unfinished} requests are unfinished, at most {limit}")

    def prepare(self, call: Checked, request_id: str | None = None) -> Prepared:
        """Makes requests of a checked call. Raises AdapterNotFound, InvalidRequest if it does not fit beside its
        adapters, or does not invoke one that has to be invoked; changes nothing but the id count."""
        sampling, uses = call.sampling, self._resolve(call.adapters)
        digests = [digest for digest, _ in uses]
        call, facts = self._read_again(call, self.adapters.tokenizer_of(digests)), self.adapters.facts_of(digests)
        check_sampled_tokens(sampling, facts)
        max_tokens = resolve_max_tokens(call.token_ids, sampling, self.adapters.num_pages(digests), facts)
        activation = find_activation([self.adapters.table_of(digest) for digest in digests], call.token_ids)
        eos_token_ids = self._eos_token_ids(call.tokenizer, facts)
        ids = list(range(self._next_id, self._next_id + sampling.n))
        self._next_id += sampling.n
        seed = self._seeds.getrandbits(64) if sampling.seed is None else sampling.seed
        requests = [
            Request(
                request_id=sample_id,
                prompt_token_ids=call.token_ids,
                sampling=sampling if index == 0 else replace(sampling, prompt_logprobs=None),
                max_tokens=max_tokens,
                seed=seed,
                sample_index=index,
                eos_token_ids=eos_token_ids,
                adapters=uses,
                activation=activation,
                priority=call.priority,
                tenant=call.tenant,
                weights=self._weights(call),
                cache_salt=call.salt,
                leader=None if index == 0 else ids[0],
            )
            for index, sample_id in enumerate(ids)
        ]
        label = str(ids[0]) if request_id is None else request_id
        lora_request = call.adapters if len(call.adapters) > 1 else next(iter(call.adapters), None)
        names = [base_name(request.lora_name) for request in call.adapters]
        user = UserRequest(
            request_id=label,
            prompt=call.text,
            prompt_token_ids=call.token_ids,
            sampling=sampling,
            lora_request=lora_request,
            output_kind=sampling.output_kind,
            sample_ids=ids,
            tokenizer=call.tokenizer,
            adapters=tuple((name, digest) for name, (digest, _) in zip(names, uses, strict=True)),
        )
        return Prepared(user, requests)

    def _end(self, user: UserRequest) -> None:
        self.usage = self.usage.plus(len(user.prompt_token_ids), user.num_cached_tokens, user.metrics)
        for name, digest in user.adapters:
            self.ledger.release(digest)
            self.adapters.count(name, len(user.prompt_token_ids), user.num_cached_tokens, user.metrics)

    def _weights(self, call: Checked) -> tuple[float, float]:
        """Of the tenant among tenants, of the adapters among the tenant's: of several the least."""
        weights = (self._config.adapter_weights.get(base_name(adapter.lora_name), 1.0) for adapter in call.adapters)
        return self._config.tenant_weights.get(call.tenant, 1.0), min(weights, default=1.0)

    def accept(self, prepared: Sequence[Prepared]) -> None:
        """Takes checked requests in, all or none. Their adapters are held until they end. Raises QueueFull."""
        self._check_room(sum(len(entry.requests) for entry in prepared))
        for entry in prepared:
            self.outputs.add(entry.user)
            for _, digest in entry.user.adapters:
                self.ledger.use(digest)

    def _read_again(self, call: Checked, tokenizer: Tokenizer) -> Checked:
        """An adapter that was loaded since the call was checked may read its prompt differently."""
        if tokenizer is call.tokenizer:
            return call
        text, token_ids, _ = self._read_prompt(call.prompt, tokenizer)
        return replace(call, tokenizer=tokenizer, text=text, token_ids=token_ids)

    def _read_prompt(self, prompt: Prompt, tokenizer: Tokenizer) -> tuple[str | None, list[int], bytes]:
        """Text (None for tokens and conversations), token ids, cache salt."""
        if not isinstance(prompt, Mapping):
            return *self._read_text_or_tokens(prompt, tokenizer), b""
        forms = [name for name in PROMPT_FORMS if name in prompt]
        if len(forms) != 1 or set(prompt) - {*forms, *PROMPT_FORMS[forms[0]], "cache_salt"}:
            raise InvalidRequest("prompt", f"give one of {', '.join(PROMPT_FORMS)}, and cache_salt if wanted")
        salt = check_salt(prompt.get("cache_salt"))
        if "messages" in prompt:
            add_generation_prompt = bool(prompt.get("add_generation_prompt", True))
            return None, self._encode_chat(prompt["messages"], add_generation_prompt, tokenizer), salt
        if isinstance(prompt.get("prompt_token_ids"), str):
            raise InvalidRequest("prompt_token_ids", "is a text and not a list of token ids")
        return *self._read_text_or_tokens(prompt[forms[0]], tokenizer), salt

    def _read_text_or_tokens(self, prompt: Any, tokenizer: Tokenizer) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, tokenizer.encode(check_text(prompt, self.facts))
        if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
            if len(prompt) > self.facts.max_model_len:  # before it is copied
                raise InvalidRequest("prompt", f"{len(prompt)} tokens, at most {self.facts.max_model_len} are taken")
            return None, as_token_ids("prompt", prompt)
        raise InvalidRequest("prompt", f"{type(prompt).__name__} is not a text, token ids or a dict of these")

    def _encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool, tokenizer: Tokenizer) -> list[int]:
        check_messages(messages, self.facts)
        text = check_text(tokenizer.apply_chat_template(messages, add_generation_prompt), self.facts)
        # Templates write the special tokens themselves; a second BOS harms the answer.
        return tokenizer.encode(text, add_special_tokens=False)

    def tokenizer_of(self, requests: Sequence[LoRARequest]) -> Tokenizer:
        """What requests for these adapters use; of those that are still to be loaded nothing is known yet."""
        return self.adapters.tokenizer_of(self._loaded(requests))

    def _loaded(self, requests: Sequence[LoRARequest]) -> list[str]:
        """The digests of those that are not still to be loaded."""
        loaded = (request.lora_name for request in requests if not self.adapters.is_to_load(request))
        return list(map(self.adapters.resolve, loaded))

    def _facts_for(self, requests: Sequence[LoRARequest]) -> Facts:
        """What a request for these adapters is checked against; one that is still to be loaded may add tokens."""
        digests = self._loaded(requests)
        if len(digests) == len(requests):
            return self.adapters.facts_of(digests)
        return replace(self.facts, vocab_size=self.facts.vocab_size + MAX_ADDED_TOKENS)

    def _eos_token_ids(self, tokenizer: Tokenizer, facts: Facts) -> frozenset[int]:
        """The model's own, and the one that an adapter was trained to end with."""
        eos = None if tokenizer is self.adapters.base_tokenizer else tokenizer.eos_token_id
        if eos is None and facts is self.facts:
            return self.defaults.eos_token_ids
        all_of_them = self.defaults.eos_token_ids | ({eos} if eos is not None else set())
        return frozenset(token_id for token_id in all_of_them if token_id < facts.vocab_size)

    def _resolve(self, requests: Sequence[LoRARequest]) -> tuple[AdapterUse, ...]:
        """The adapters of a request by content. Raises AdapterNotFound, InvalidRequest for two names of one content."""
        digests = {request: self.adapters.resolve(request.lora_name) for request in requests}
        self._check_sum(digests, len(requests))
        # -0.0 becomes 0.0: equal scales are equal bits.
        return tuple((digest, float(use.lora_scale) + 0.0) for use, digest in digests.items())


def _host_bytes(config: EngineConfig) -> int | None:
    """A fraction is of what is free now, beside the model's weights."""
    return None if config.host_cache is None else parse_memory(config.host_cache, usable_memory(), "host_cache")
