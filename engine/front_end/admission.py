"""Admission: decides which requests the queue takes. Owns who is in it, and what each tenant has there.

A request is refused at once when the queue is full, when its tenant's share of the queue is, or when it is predicted to
wait longer than the server or its own deadlines allow. Synchronous, without I/O; knows no text and no engine.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass

from blora.scheduler import DEFAULT_FAIRNESS, StepCosts, StepReport

from ..errors import QueueFull
from ..outputs import QueueFacts
from .backlog import NOTHING, Backlog, Load, Place
from .caution import Cautions
from .demand import Demand
from .forecast import Forecast, Prediction
from .outcomes import Outcomes

# A tenant may have this many times what is free. So one tenant alone can fill four fifths of the queue, and any number
# of tenants leave some of it to the next one.
SHARE_OF_FREE = 4
OTHERS = "(others)"  # the tenant of requests whose own would be one too many
PATIENCE = 2.0  # how many times the longest predicted wait an accepted request may wait to be begun
LEAST_RETRY, MOST_RETRY = 0.1, 30.0  # seconds that a refusal asks to wait


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The bounds of a queue; None sets no bound."""

    max_requests: int  # unfinished samples
    max_tokens: int | None = None  # of prompts that wait for their first token
    max_seconds: float | None = None  # that a request may be predicted to wait
    max_tenants: int = 256  # that have unfinished requests, those with a weight of their own aside


@dataclass(slots=True)
class _Entry:
    """An unfinished request."""

    demand: Demand
    place: Place
    load: Load
    entered: float
    prediction: Prediction | None  # None where nothing was predicted
    first_token: float | None = None  # when it came


class Admission:
    def __init__(
        self,
        limits: QueueLimits,
        policy: str,
        num_seats: int,
        named_tenants: Collection[str],
        now: Callable[[], float],
    ) -> None:
        """policy: one of the scheduler's POLICIES. named_tenants: those that always count as themselves."""
        self._limits, self._named, self._now = limits, frozenset(named_tenants), now
        self._backlog, self._forecast = Backlog(policy), Forecast(num_seats)
        self._cautions = Cautions(limits.max_tenants)
        self._entries: dict[Hashable, _Entry] = {}
        self._requests: Counter[str] = Counter()  # tenant -> its unfinished samples
        self._tokens: Counter[str] = Counter()  # tenant -> tokens of its prompts that wait for their first token
        self._num_decoding = 0  # samples whose first token has come
        self._refused_seconds, self._refused_at = 0.0, now()  # work that was refused and may come again, at this time
        self._num_refused = self._num_expired = 0
        self.outcomes = Outcomes.none()

    # Decisions.

    def tenant(self, name: str, is_proven: bool = False) -> str:
        """Returns the tenant that a request of this one counts for: clients could invent names without end."""
        is_known = is_proven or not name or name in self._named or name in self._requests
        return name if is_known or len(self._requests) < self._limits.max_tenants else OTHERS

    def check(self, demands: Sequence[Demand]) -> None:
        """Raises QueueFull unless the queue can take all of these requests together."""
        try:
            self._check_room(demands)
            for demand in demands:
                self._check_time(demand)
        except QueueFull:
            self._num_refused += len(demands)
            raise

    def _check_room(self, demands: Sequence[Demand]) -> None:
        requests, tokens = Counter[str](), Counter[str]()
        for demand in demands:
            tenant = self._tenant_of(demand)
            requests[tenant] += demand.num_samples
            tokens[tenant] += demand.num_prompt_tokens
            self._check_quota("requests", self._requests[tenant], requests[tenant], demand.quotas.requests)
            self._check_quota("queued tokens", self._tokens[tenant], tokens[tenant], demand.quotas.queued_tokens)
        self._check_bound("requests", "are unfinished", self._requests, requests, self._limits.max_requests)
        if self._limits.max_tokens is not None and self._entries:
            self._check_bound("tokens", "of prompts wait", self._tokens, tokens, self._limits.max_tokens)

    def _tenant_of(self, demand: Demand) -> str:
        return self.tenant(demand.tenant, demand.is_proven)

    def _check_quota(self, what: str, held: int, asked: int, most: int | None) -> None:
        if most is not None and held + asked > most:
            reason = f"the tenant would have {held + asked} {what}, and its quota is {most}"
            raise QueueFull.of("tenant", reason, self._when_others_have_ended(asked, most))

    def _check_bound(self, unit: str, state: str, held: Counter[str], asked: Counter[str], limit: int) -> None:
        total, what = held.total(), f"{unit} {state}"
        if total + asked.total() > limit:
            most_alone = limit if held is self._requests else math.inf  # an idle engine takes a prompt of any length
            after = self._when_others_have_ended(asked.total(), most_alone)
            raise QueueFull.of(unit, f"{total} {what}, at most {limit}", after)
        most = SHARE_OF_FREE * (limit - total)
        for tenant, num in asked.items():
            if held[tenant] and held[tenant] + num > most:
                reason = f"{held[tenant]} {what} of this tenant, at most {most} beside those of others"
                raise QueueFull.of("tenant", reason, self._retry_after(0.0, NOTHING))

    def _when_others_have_ended(self, asked: int, most: float) -> float | None:
        """Returns the seconds after which what is refused is expected to fit; None for what alone is too much, so that
        nobody tries it again and again."""
        return None if asked > most else self._retry_after(0.0, NOTHING)

    def _check_time(self, demand: Demand) -> None:
        """Predicts nothing for an idle engine, or for one that has hardly computed yet: it has to learn. For the same
        reason a prompt that finds no other waiting is not refused for its own length: who refuses all long prompts
        never finds out that they take less time."""
        limits = (self._limits.max_seconds, demand.first_token_deadline, demand.deadline)
        prediction = None if limits == (None, None, None) else self._predict(demand)
        if prediction is None:
            return
        caution = self._cautions.of_tenant(self._tenant_of(demand))
        wait = caution.first_token.of(prediction.wait)
        prompt = prediction.prompt if self._backlog.load.num_rows else 0.0
        first = caution.first_token.of(prediction.wait + prompt)
        num_later = self._num_answer_tokens(demand) - 1
        end = first + caution.token.of(num_later * prediction.token)
        if self._limits.max_seconds is not None and wait > self._limits.max_seconds:
            reason = f"the request would wait for about {wait:.1f} s"
            self._refuse(demand, reason, wait - self._limits.max_seconds, "wait")
        self._check_deadline(demand, demand.first_token_deadline, first, "the first token would come", wait)
        self._check_deadline(demand, demand.deadline, end, "the answer would be complete", wait)

    def _check_deadline(self, demand: Demand, deadline: float | None, seconds: float, what: str, wait: float) -> None:
        if deadline is None:
            return
        left = deadline - self._now()
        if seconds > left:
            reason = f"{what} in about {seconds:.2f} s, and the deadline passes in {left:.2f} s"
            self._refuse(demand, reason, min(seconds - left, wait), "deadline")

    def _refuse(self, demand: Demand, reason: str, seconds: float, cause: str) -> None:
        raise QueueFull.of(cause, reason, self._retry_after(seconds, self._load(demand)))

    def _predict(self, demand: Demand) -> Prediction | None:
        if not self._entries or not self._forecast.is_measured:
            return None
        load, place = self._load(demand), self._place(demand)
        now = self._forecast.predict(load, self._backlog.ahead(place, load), self._num_decoding)
        # Those that decode now have come within the time of an answer, and as many will come within the next one.
        coming = now.wait / (self._forecast.num_answer_tokens(1, sys.maxsize) * now.token)
        return self._forecast.predict(load, self._backlog.ahead(place, load, coming), self._num_decoding)

    def _load(self, demand: Demand) -> Load:
        num_answer, prices = demand.num_samples * self._num_answer_tokens(demand), DEFAULT_FAIRNESS
        num_tokens = demand.num_prompt_tokens
        service = num_tokens * prices.input_price + num_answer * prices.output_price
        return Load(demand.num_samples, num_tokens, num_tokens**2 // 2, round(service), demand.num_scored_tokens)

    def _place(self, demand: Demand) -> Place:
        return self._backlog.place(demand.priority, self._tenant_of(demand), demand.flow, demand.weights)

    def _num_answer_tokens(self, demand: Demand) -> float:
        return self._forecast.num_answer_tokens(demand.num_certain_tokens, demand.max_tokens)

    def _retry_after(self, seconds: float, refused: Load) -> float:
        """Returns the seconds after which what is refused will fit. seconds: until the queue has room for it. What was
        refused before may come again before it."""
        now = self._now()
        before = max(self._refused_seconds - (now - self._refused_at), 0.0)
        work = self._forecast.prompt_seconds(refused, self._num_decoding)
        self._refused_seconds, self._refused_at = min(before + work, MOST_RETRY), now
        return round(min(max(seconds + before, LEAST_RETRY), MOST_RETRY), 3)

    def begin_by(self) -> float | None:
        """Returns when a request that is accepted now has waited too long, unless it has been begun."""
        return None if self._limits.max_seconds is None else self._now() + PATIENCE * self._limits.max_seconds

    def waited_too_long(self) -> QueueFull:
        """Makes the error of a request that was dropped for that."""
        limit = PATIENCE * (self._limits.max_seconds or 0.0)
        reason = f"the request has waited {limit:.1f} s to be begun, longer than predicted"
        return QueueFull(reason, self._retry_after(0.0, NOTHING))

    # What happens in the queue.

    def enter(self, key: Hashable, demand: Demand) -> None:
        """Takes a request in, under a key of its own."""
        entry = _Entry(demand, self._place(demand), self._load(demand), self._now(), self._predict(demand))
        self._entries[key] = entry
        self._requests[demand.tenant] += demand.num_samples
        self._tokens[demand.tenant] += demand.num_prompt_tokens
        self._backlog.add(entry.place, entry.load)

    def note_first_token(self, key: Hashable, num_cached_tokens: int) -> None:
        entry, now = self._entries[key], self._now()
        entry.first_token = now
        self._backlog.serve(entry.place, entry.load)
        self._stop_counting_tokens(entry)
        self._num_decoding += entry.demand.num_samples
        self._forecast.note_prompt(entry.demand.num_prompt_tokens, num_cached_tokens)
        self._note_wait(entry)
        if entry.prediction is not None:
            self.outcomes.note(entry.prediction.wait + entry.prediction.prompt, now - entry.entered)

    def _note_wait(self, entry: _Entry) -> None:
        """Notes that a request waits no more: its first token has come, or it has waited too long, which is the worst
        miss of a prediction."""
        if entry.prediction is not None:
            now, caution = self._now(), self._cautions.of_tenant(entry.demand.tenant).first_token
            caution.note(entry.prediction.wait + entry.prediction.prompt, now - entry.entered, entry.entered, now)

    def _stop_counting_tokens(self, entry: _Entry) -> None:
        _subtract(self._tokens, entry.demand.tenant, entry.demand.num_prompt_tokens)

    def leave(self, key: Hashable, num_tokens: int | None, is_too_late: bool) -> None:
        """Lets a request go. num_tokens: of its answer, in the mean of its samples; None for one that did not come to
        its own end. is_too_late: whether a deadline, or its wait, has ended it."""
        entry = self._entries.pop(key)
        _subtract(self._requests, entry.demand.tenant, entry.demand.num_samples)
        self._num_expired += is_too_late
        if entry.first_token is None:
            self._backlog.remove(entry.place, entry.load)
            self._stop_counting_tokens(entry)
            if is_too_late:
                self._note_wait(entry)
            return
        self._backlog.end(entry.place, entry.load)
        self._num_decoding -= entry.demand.num_samples
        if num_tokens is not None:
            self._forecast.note_answer(num_tokens)
            if entry.prediction is not None and num_tokens > 1:
                now = self._now()
                seconds = (now - entry.first_token) / (num_tokens - 1)
                caution = self._cautions.of_tenant(entry.demand.tenant).token
                caution.note(entry.prediction.token, seconds, entry.entered, now)

    def note_step(self, step: StepReport | None, costs: StepCosts | None) -> None:
        """Notes what the engine tells of a step; None for what it does not tell."""
        if costs is not None:
            self._forecast.costs = costs
        if step is not None:
            self._forecast.note_step(step)

    # Facts.

    @property
    def facts(self) -> QueueFacts:
        return QueueFacts(self._tokens.total(), self._num_refused, self._num_expired)

    def check_integrity(self, unfinished: Iterable[Hashable]) -> None:
        """Raises RuntimeError when a count is not that of the requests in the queue, or these are not the unfinished
        ones."""
        self._backlog.check_integrity()
        if self._entries.keys() != set(unfinished):
            raise RuntimeError("the queue holds other requests than the unfinished ones")
        waiting = [entry.demand for entry in self._entries.values() if entry.first_token is None]
        requests, tokens = Counter[str](), Counter[str]()
        for entry in self._entries.values():
            requests[entry.demand.tenant] += entry.demand.num_samples
        for demand in waiting:
            tokens[demand.tenant] += demand.num_prompt_tokens
        num_decoding = requests.total() - sum(demand.num_samples for demand in waiting)
        if (requests, tokens, num_decoding) != (self._requests, self._tokens, self._num_decoding):
            raise RuntimeError("the queue counts other requests than it holds")
        if self._backlog.load.num_prompt_tokens != tokens.total():
            raise RuntimeError("the backlog holds other prompts than the queue")


def _subtract(counts: Counter[str], tenant: str, number: int) -> None:
    """Keeps only tenants that have something: any number of names may come."""
    counts[tenant] -= number
    if not counts[tenant]:
        del counts[tenant]
