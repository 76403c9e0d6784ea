"""Simulation: the real scheduler over a trace, with a clock in place of a model, in seconds instead of minutes.

A step advances the clock by the time of its tokens and copies on the machine of the README; it computes no token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from blora.scheduler import (
    AdapterResidency,
    BlockPool,
    Fairness,
    KeepRule,
    KVManager,
    Limits,
    Request,
    ReturnCosts,
    RowResult,
    SamplingParams,
    Scheduler,
    Step,
    StepCosts,
    StepWork,
)

from .trace import Arrival

TOKEN_SECONDS = 0.28e-3  # time of a computed token
PAGE_SECONDS = 0.1e-3  # time of a copied page
COSTS = StepCosts(5e-3, TOKEN_SECONDS, TOKEN_SECONDS, *[0.0] * 5)
BLOCK_SIZE = 16
EOS = frozenset({-1})  # never drawn, but the scheduler does not know that


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    num_pages: int
    adapter_pages: Sequence[int]  # pages of each adapter
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    copied_pages_per_step: int = 170  # 64 MiB of SmolLM2-135M's pages
    costs: StepCosts = COSTS
    is_timed: bool = False  # see Limits of the scheduler
    target_itl: float | None = None


@dataclass(slots=True)
class Outcome:
    """The results of a trace; lists are by request."""

    adapters: list[int] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)  # seconds from arrival to the first token
    token_times: list[list[float]] = field(default_factory=list)  # seconds since the start of the trace
    num_preemptions: list[int] = field(default_factory=list)
    slowdowns: list[float] = field(default_factory=list)  # of each gap: its step's time by that of decoding rows alone
    seconds: float = 0.0  # time until all requests had finished
    copied_adapters: int = 0
    copied_pages: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0


def simulate(
    trace: Sequence[Arrival],
    machine: Machine,
    policy: str,
    fairness: Fairness,
    rule: KeepRule | None = None,
    until: float = inf,
) -> Outcome:
    """Serves a whole trace, or as much of it as is served before a time; returns its results."""
    pool = BlockPool(machine.num_pages, rule or KeepRule(machine.num_pages, costs()))
    residency = AdapterResidency(pool, machine.copied_pages_per_step)
    kv = KVManager(pool, BLOCK_SIZE)
    limits = Limits(machine.max_num_batched_tokens, machine.max_num_seqs, machine.is_timed, machine.target_itl)
    scheduler = Scheduler(limits, pool, kv, residency, policy, fairness)
    for adapter, num_pages in enumerate(machine.adapter_pages):
        residency.register(str(adapter), num_pages)
    times: list[list[float]] = [[] for _ in trace]
    outcome = Outcome([arrival.adapter for arrival in trace], [0.0] * len(trace), times, [0] * len(trace))
    now, num_accepted = 0.0, 0
    while now < until and (num_accepted < len(trace) or scheduler.has_work):
        if not scheduler.has_work:
            now = max(now, trace[num_accepted].seconds)
        while num_accepted < len(trace) and trace[num_accepted].seconds <= now:
            scheduler.add(_request(num_accepted, trace[num_accepted]))
            num_accepted += 1
        step = scheduler.schedule(now)
        copying, computing = _seconds(step, machine.costs)
        outcome.slowdowns += _slowdown(step, machine.costs)
        now += copying + computing
        scheduler.note_seconds(step, copying, computing)
        results = {row.request_id: RowResult(1 if row.is_sampled else None) for row in step.rows}
        for update in scheduler.update(step, results):
            if not outcome.first_tokens[update.request_id]:
                outcome.first_tokens[update.request_id] = now - trace[update.request_id].seconds
            outcome.token_times[update.request_id].append(now)
            outcome.num_preemptions[update.request_id] = update.num_preemptions
        outcome.computed_tokens += step.num_tokens
    scheduler.check_integrity()
    outcome.seconds = now
    counts = scheduler.counts
    outcome.copied_adapters = counts.num_adapter_uses - counts.num_adapter_hits
    outcome.copied_pages = counts.num_copied_pages
    outcome.cached_tokens = counts.num_cached_tokens
    return outcome


def _slowdown(step: Step, costs: StepCosts) -> list[float]:
    """Returns the step's time by that of its decoding rows alone, for each of these rows."""
    decoding = [row.work for row in step.rows if row.num_output_tokens]
    alone = costs.seconds(StepWork.total([StepWork(1), *decoding]))
    return [costs.seconds(step.work) / alone for _ in decoding]


def costs() -> ReturnCosts:
    return ReturnCosts(BLOCK_SIZE * TOKEN_SECONDS, PAGE_SECONDS)


def _request(request_id: int, arrival: Arrival) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=[-1 - arrival.adapter] * arrival.prefix_len + [request_id] * arrival.input_len,
        sampling=SamplingParams(),
        max_tokens=arrival.output_len,
        seed=0,
        eos_token_ids=EOS,
        adapters=((str(arrival.adapter), 1.0),),
        tenant=arrival.tenant,
    )


def _seconds(step: Step, costs: StepCosts) -> tuple[float, float]:
    """Returns the seconds of a step's copies and of its rows."""
    num_copied = sum(len(copy.page_ids) for copy in step.copies)
    return PAGE_SECONDS * num_copied, costs.seconds(step.work)
