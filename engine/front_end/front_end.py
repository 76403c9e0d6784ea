"""FrontEnd: turns a user's call into requests for the engine, the same in process and behind a process.

Owns the tokenizer, the catalog, the ledger and the policy of adapters, and the texts of unfinished requests. Runs no
step and imports no torch.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from blora.scheduler import LogitEdits, SamplingParams, StepCosts, StepReport

from ..adapter_store.catalog import AdapterCatalog, Looks
from ..adapter_store.image_ledger import ImageLedger
from ..adapter_store.policy import AdapterPolicy
from ..config import EngineConfig
from ..errors import InvalidRequest
from ..facts import Facts
from ..grammar.grammars import GrammarOrder
from ..grammar.source import GrammarSource, source_of
from ..grammar.vocabulary import spelled_tokens
from ..identity.tenant import Tenant
from ..ipc.messages import AddRequest
from ..memory.budget import parse_memory, usable_memory
from ..outputs import AdapterUsage, LoRARequest
from ..text.bad_words import drawable
from ..text.text_work import TextOrder, TextTokens, TextWork, start_work, tokenize
from ..text.tokenizer import Tokenizer
from .adapter_choice import Adapter, ResolvedAdapters, folders_to_look_at, resolve, resolve_loaded
from .admission import Admission, QueueLimits
from .calls import Call
from .demand import Demand, TextSizes, num_certain_tokens
from .generation_config import GenerationDefaults
from .observations import Observations
from .output_processor import OutputProcessor, UserRequest
from .prompts import PromptParts, PromptReader, check_has_rows
from .shared_prompts import SharedPrompts, salted
from .suspects import Suspects
from .token_lists import TokenLists, check_edits
from .validator import (
    WITHOUT_EFFECT,
    Limits,
    as_plain,
    check_sampled_tokens,
    check_sampling,
    check_tenant,
    ignored_fields,
    most_listed,
    num_kept_tokens,
    resolve_max_tokens,
    with_all_logprobs,
)

logger = logging.getLogger(__name__)
TOKENS_PER_MICROSECOND, COST_PER_SAMPLE = 16, 10  # of the event loop's time; measured


@dataclass(frozen=True, slots=True)
class Opened:
    """A call with checked arguments, whose text is still to be tokenised."""

    parts: PromptParts
    sampling: SamplingParams  # without `lists`
    lists: TokenLists
    adapters: ResolvedAdapters
    priority: int
    tenant: Tenant
    deadline: float | None
    first_token_deadline: float | None
    grammar: GrammarSource | None  # what the text of the answer has to match

    @property
    def spelled_tokens(self) -> tuple[tuple[int, str], ...]:
        """The tokens of its adapters that can stand in a text that has to match something."""
        grammar = "" if self.grammar is None else self.grammar.text
        return spelled_tokens(self.adapters.tokenizer.added_tokens, grammar)

    def cost_of_check(self, tokens: TextTokens) -> int:
        """The microseconds that it takes to check them, about."""
        return len(self.parts.token_ids or tokens.prompt) // TOKENS_PER_MICROSECOND


@dataclass(frozen=True, slots=True)
class Checked:
    """A call without a fault so far. Its adapters may still have to be loaded."""

    opened: Opened
    token_ids: list[int]  # of the prompt, by the tokenizer of `adapters`
    bad_sequences: tuple[tuple[int, ...], ...]
    edits: LogitEdits
    grammar: GrammarOrder | None = None  # of `opened.grammar`, once it has been found to be one

    @property
    def cost(self) -> int:
        """The microseconds that it takes to prepare and accept it, about."""
        return len(self.token_ids) // TOKENS_PER_MICROSECOND + COST_PER_SAMPLE * self.sampling.n

    @property
    def sampling(self) -> SamplingParams:
        return self.opened.sampling

    @property
    def adapters(self) -> ResolvedAdapters:
        return self.opened.adapters

    @property
    def tenant(self) -> Tenant:
        return self.opened.tenant


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked call whose adapters are loaded: the user's side of it and the engine's."""

    user: UserRequest
    requests: list[AddRequest]  # one per sample; they share the prompt
    demand: Demand


class FrontEnd:
    def __init__(
        self,
        tokenizer: Tokenizer,
        defaults: GenerationDefaults,
        facts: Facts,
        config: EngineConfig,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.defaults = defaults.within(facts.vocab_size, facts.max_model_len)
        self.facts = facts
        self.adapters = AdapterCatalog(facts, config.max_adapter_versions, tokenizer)
        self.ledger = ImageLedger(_host_bytes(config))
        self.policy = AdapterPolicy(self.adapters, self.ledger)
        self._prompts = PromptReader(facts)
        self.suspects = Suspects()
        self.observations = Observations(facts.max_model_len, tuple(config.tenant_weights))
        self.outputs = OutputProcessor(self._note_first_token, self._end, now, self.observations.note_tokens)
        self._now = now
        self.on_end: Sequence[Callable[[UserRequest], None]] = ()  # told of each request that has ended
        self.usage = AdapterUsage()  # of all requests, those for the base model included
        self.admission = Admission(
            QueueLimits(
                config.max_num_queued_reqs, config.max_num_queued_tokens, config.max_queue_seconds, config.max_tenants
            ),
            config.scheduling_policy,
            config.max_num_seqs,
            config.tenant_weights,
            now,
        )
        self.shared_prompts = SharedPrompts()
        self._sizes = TextSizes()
        self._config = config
        self._limits = Limits(
            default_max_tokens=self.defaults.sampling.max_tokens,
            max_n=config.max_n,
            max_stops=config.max_stops,
            max_logprobs=None if config.max_logprobs == -1 else config.max_logprobs,
        )
        self.most_listed = most_listed(facts, self._limits)
        self._seeds = random.Random(config.seed)  # None takes a seed from the system
        self._next_id = 0
        self._noticed: set[str] = set()  # fields without effect, of which a notice was given

    # From a call to requests: look at folders, check, load what is to be loaded, check again then, prepare, accept.

    def folders_to_look_at(self, calls: Sequence[Call]) -> list[str]:
        """Folders of loaded adapters whose paths come with calls. Their files may have changed: the caller looks."""
        return list(
            dict.fromkeys(folder for call in calls for folder in folders_to_look_at(call.adapter, self.adapters))
        )

    def open(self, call: Call, looks: Looks) -> Opened:
        """Checks the arguments of a call and takes its prompt apart, changing nothing. looks: at `folders_to_look_at`.
        Raises InvalidRequest, AdapterNotFound."""
        sampling = self.defaults.sampling if call.sampling is None else call.sampling
        if not isinstance(sampling, SamplingParams):
            raise InvalidRequest("sampling_params", f"{type(sampling).__name__} is not SamplingParams")
        priority = call.priority
        if isinstance(priority, bool) or not isinstance(priority, int) or not -(1 << 31) <= priority < 1 << 31:
            raise InvalidRequest("priority", f"{priority!r} is not a 32-bit integer")
        tenant = check_tenant(call.tenant)
        adapters = resolve(call.adapter, self.adapters, looks)
        check_sampling(sampling, adapters.facts, self._limits)
        grammar = None if sampling.structured_outputs is None else source_of(sampling.structured_outputs)
        self._notice(sampling)
        lists, sampling = TokenLists.of(sampling), as_plain(sampling)
        work = TextWork(keep_last=num_kept_tokens(sampling, self.facts), bad_words=tuple(sampling.bad_strings))
        parts = self._prompts.take_apart(call.prompt, work)
        return Opened(
            parts, sampling, lists, adapters, priority, tenant, call.deadline, call.first_token_deadline, grammar
        )

    def start_reading(self, call: Opened) -> TextTokens | TextOrder:
        """Tokenises what is short; otherwise returns what another process is to do. Raises InvalidRequest."""
        return start_work(call.parts.work, call.adapters.tokenizer, self.adapters.base_tokenizer, self.facts)

    def prompt_tokens(self, call: Opened, tokens: TextTokens) -> list[int]:
        """Returns the tokens of a call's prompt. tokens: what its text came to."""
        return self._prompts.token_ids(call.parts, tokens, call.adapters.tokenizer)

    def check(
        self,
        call: Opened,
        tokens: TextTokens | None = None,
        edits: LogitEdits | None = None,
        grammar: GrammarOrder | None = None,
    ) -> Checked:
        """Checks the tokens of a call, which are made and packed here if they are not given. grammar: the one that the
        call asks for; a caller who has it checked later replaces None. Raises InvalidRequest."""
        adapters = call.adapters
        tokens = tokens or tokenize(call.parts.work, adapters.tokenizer, self.facts)
        token_ids = self.prompt_tokens(call, tokens)
        check_has_rows(token_ids, adapters.tokenizer, adapters.facts)
        if call.parts.token_ids is None:
            self._sizes.note(call.parts.work.weight, len(token_ids))
        # Before any adapter is loaded: a call that is too long without them is too long with them.
        resolve_max_tokens(token_ids, call.sampling, self.adapters.num_pages(()), adapters.facts, self._limits)
        edits = call.lists.pack_at_once(adapters.facts) if edits is None else edits
        return Checked(call, token_ids, tokens.bad_sequences, edits, grammar)

    def _notice(self, sampling: SamplingParams) -> None:
        """Says once of each field without effect why it has none."""
        for name in ignored_fields(sampling):
            if name not in self._noticed:
                logger.warning("SamplingParams.%s has no effect: %s", name, WITHOUT_EFFECT[name])
                self._noticed.add(name)

    def folders_to_look_at_again(self, calls: Sequence[Checked]) -> list[str]:
        """Folders of the adapters that had to be loaded for calls, and that others have loaded meanwhile."""
        found = [self.adapters.folder_to_look_at(request) for call in calls for request in call.adapters.to_load]
        return [folder for folder in dict.fromkeys(found) if folder is not None]

    def adapters_to_load(self, calls: Sequence[Checked], looks: Looks) -> list[LoRARequest]:
        """The adapters that have still to be loaded before these calls can be prepared, each name once."""
        requests = {request.lora_name: request for call in calls for request in call.adapters.to_load}
        return [request for request in requests.values() if self.adapters.is_to_load(request, looks)]

    def lora_to_load(self, lora_request: LoRARequest, looks: Looks) -> tuple[LoRARequest, ...]:
        """The request, if its adapter has to be loaded. looks: at `folders_to_look_at`. Raises InvalidRequest,
        AdapterNotFound for an adapter that is not loaded and has no path."""
        if not isinstance(lora_request, LoRARequest):
            raise InvalidRequest("lora_request", f"{type(lora_request).__name__} is not a LoRARequest")
        return resolve(lora_request, self.adapters, looks).to_load

    def check_again(self, call: Checked) -> Checked:
        """Checks a call whose adapters have been loaded, after others may have changed what names mean. An adapter may
        read the prompt with a tokenizer of its own. Raises AdapterNotFound, InvalidRequest."""
        opened = self.open_again(call)
        tokenizer = opened.adapters.tokenizer
        if tokenizer is call.adapters.tokenizer:
            return replace(call, opened=opened)
        grammar = None if call.grammar is None else replace(call.grammar, spelled=opened.spelled_tokens)
        return self.check(opened, edits=call.edits, grammar=grammar)

    def open_again(self, call: Checked) -> Opened:
        """A call whose adapters have been loaded: names mean what they mean now. Raises AdapterNotFound,
        InvalidRequest."""
        return replace(call.opened, adapters=resolve_loaded(call.adapters.requests, self.adapters))

    def check_queue(self, calls: Sequence[Opened]) -> None:
        """Raises QueueFull when the queue would not take these calls, by the size of their texts where these are not
        tokenised yet."""
        self.admission.check([self._estimated(call) for call in calls])

    def check_ahead(self, calls: Sequence[Checked]) -> None:
        """Raises what `prepare` and `accept` would raise now, changing nothing. Of adapters that are still to be loaded
        it knows nothing yet."""
        self.admission.check([self._checked_demand(call) for call in calls])

    def _checked_demand(self, call: Checked) -> Demand:
        """Raises InvalidRequest for a call that does not fit beside its adapters, or does not invoke an activated
        LoRA."""
        adapters, sampling = call.adapters, call.sampling
        check_sampled_tokens(sampling, adapters.facts, self._limits)
        check_edits(call.edits, adapters.facts)
        num_pages = self.adapters.num_pages(adapters.digests)
        max_tokens = resolve_max_tokens(call.token_ids, sampling, num_pages, adapters.facts, self._limits)
        adapters.find_activation(call.token_ids)
        return self._demand(call.opened, len(call.token_ids), max_tokens)

    def _estimated(self, call: Opened) -> Demand:
        tokens, room = call.parts.token_ids, self.facts.max_model_len
        num_tokens = len(tokens) if tokens is not None else min(self._sizes.num_tokens(call.parts.work.weight), room)
        most = max(room - num_tokens, 1)
        return self._demand(call, num_tokens, min(call.sampling.max_tokens or most, most))

    def _demand(self, call: Opened, num_prompt_tokens: int, max_tokens: int) -> Demand:
        return Demand(
            tenant=self.admission.tenant(call.tenant.name, call.tenant.is_proven),
            priority=call.priority,
            flow=tuple(call.adapters.names),
            quotas=call.tenant.quotas,
            is_proven=call.tenant.is_proven,
            weights=self._weights(call),
            num_prompt_tokens=num_prompt_tokens,
            num_scored_tokens=0 if call.sampling.prompt_logprobs is None else num_prompt_tokens,
            num_samples=call.sampling.n,
            max_tokens=max_tokens,
            num_certain_tokens=num_certain_tokens(call.sampling, max_tokens),
            deadline=call.deadline,
            first_token_deadline=call.first_token_deadline,
        )

    def prepare(self, call: Checked, request_id: str | None = None) -> Prepared:
        """Makes requests of a checked call whose adapters are loaded; changes nothing but the count of ids. Raises
        InvalidRequest for a call that does not fit beside its adapters, or does not invoke an activated LoRA."""
        demand = self._checked_demand(call)
        sampling = with_all_logprobs(call.sampling, len(call.token_ids), call.adapters.facts)
        call = replace(call, opened=replace(call.opened, sampling=sampling))
        ids = list(range(self._next_id, self._next_id + sampling.n))
        self._next_id += sampling.n
        requests = self._requests(call, ids, demand.max_tokens)
        label = str(ids[0]) if request_id is None else request_id
        return Prepared(_user_request(call, ids, label), requests, demand)

    def _requests(self, call: Checked, ids: Sequence[int], max_tokens: int) -> list[AddRequest]:
        """One request for each sample of a call, under these ids."""
        adapters, sampling = call.adapters, call.sampling
        activation = adapters.find_activation(call.token_ids)
        eos_token_ids, weights = self._eos_token_ids(adapters), self._weights(call.opened)
        of_tokenizers = {tokenizer.eos_token_id for tokenizer in (self.adapters.base_tokenizer, adapters.tokenizer)}
        bad = drawable(call.bad_sequences, adapters.facts.vocab_size)
        seed = self._seeds.getrandbits(64) if sampling.seed is None else sampling.seed
        num_shared = 0 if call.opened.parts.salt else self.shared_prompts.num_tokens(call.token_ids)
        of_others = replace(sampling, prompt_logprobs=None)  # the first sample tells them
        return [
            AddRequest(
                request_id=sample_id,
                prompt_token_ids=call.token_ids,
                sampling=sampling if index == 0 else of_others,
                max_tokens=max_tokens,
                seed=seed,
                sample_index=index,
                eos_token_ids=eos_token_ids,
                further_eos_token_ids=eos_token_ids - of_tokenizers,
                adapters=adapters.uses,
                activation=activation,
                priority=call.opened.priority,
                tenant=self.admission.tenant(call.tenant.name, call.tenant.is_proven),
                weights=weights,
                cache_salt=salted(call.tenant, call.opened.parts.salt),
                num_unsalted_tokens=num_shared,
                bad_sequences=bad,
                edits=call.edits,
                deadline=call.opened.deadline,
                begin_by=None,
                leader=None if index == 0 else ids[0],
                num_alone=0,
                grammar=call.grammar,
            )
            for index, sample_id in enumerate(ids)
        ]

    def _eos_token_ids(self, adapters: ResolvedAdapters) -> frozenset[int]:
        """The tokens that end the model's answers, and the one that an adapter was trained to end with."""
        tokenizer, facts = adapters.tokenizer, adapters.facts
        eos = None if tokenizer is self.adapters.base_tokenizer else tokenizer.eos_token_id
        if eos is None and facts is self.facts:
            return self.defaults.eos_token_ids
        all_of_them = self.defaults.eos_token_ids | ({eos} if eos is not None else set())
        return frozenset(token_id for token_id in all_of_them if token_id < facts.vocab_size)

    def _weights(self, call: Opened) -> tuple[float, float]:
        """The weight of the tenant among tenants, and of the adapters among the tenant's: the least of several."""
        tenant = call.tenant
        weight = self._config.tenant_weights.get(tenant.name, 1.0) if tenant.weight is None else tenant.weight
        weights = (self._config.adapter_weights.get(name, 1.0) for name in call.adapters.names)
        return weight, min(weights, default=1.0)

    def accept(self, prepared: Sequence[Prepared]) -> None:
        """Takes prepared calls in, all or none. Their adapters are held until they end. Raises QueueFull."""
        self.admission.check([entry.demand for entry in prepared])
        for entry in prepared:
            self.admission.enter(entry.user, entry.demand)
            self.outputs.add(entry.user)
            for _, digest in entry.user.adapters:
                self.ledger.use(digest)

    def with_adapters_set_aside(self) -> dict[int, str]:
        """Returns the unfinished samples that no engine can compute any more, each with the reason."""
        return {
            sample_id: f"an adapter of this request is set aside: {reason}"
            for sample_id, digests in self.outputs.digests().items()
            for reason in map(self.adapters.why_set_aside, digests)
            if reason is not None
        }

    def _note_first_token(self, user: UserRequest) -> None:
        self.admission.note_first_token(user, user.num_cached_tokens)
        self.observations.note_first_token(user)

    def note_step(self, step: StepReport | None, costs: StepCosts | None) -> None:
        """Notes what the engine tells of a step; None for what it does not tell."""
        self.admission.note_step(step, costs)
        if step is not None:
            self.observations.note_step(step)

    def _end(self, user: UserRequest) -> None:
        self.admission.leave(user, user.num_answer_tokens, user.is_too_late or user.has_waited_too_long)
        self.observations.note_end(user, self._now())
        for tell in self.on_end:
            tell(user)
        self.usage = self.usage.plus(len(user.prompt_token_ids), user.num_cached_tokens, user.metrics)
        for name, digest in user.adapters:
            self.ledger.release(digest)
            self.adapters.count(name, len(user.prompt_token_ids), user.num_cached_tokens, user.metrics)

    # Prompts.

    def tokenizer_of(self, adapter: Adapter) -> Tokenizer:
        """The tokenizer of requests for these adapters. An adapter that is not loaded yet has no say in it."""
        return resolve(adapter, self.adapters, {}).tokenizer


def _user_request(call: Checked, ids: list[int], label: str) -> UserRequest:
    adapters = call.adapters
    return UserRequest(
        request_id=label,
        prompt=call.opened.parts.text,
        prompt_token_ids=call.token_ids,
        sampling=call.sampling,
        lora_request=adapters.lora_request,
        output_kind=call.sampling.output_kind,
        sample_ids=ids,
        tokenizer=adapters.tokenizer,
        adapters=tuple(zip(adapters.names, adapters.digests, strict=True)),
        tenant=call.tenant.name,
    )


def _host_bytes(config: EngineConfig) -> int | None:
    """The limit of the host cache. A fraction is taken of the memory that is free beside the model."""
    return None if config.host_cache is None else parse_memory(config.host_cache, usable_memory(), "host_cache")
