"""A world in which a server is overloaded: the real admission and the real scheduler, on a clock that jumps, with steps
that take as long as StepCosts say, more or less. A second of it takes a few milliseconds."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fakes import make_scheduler

from blora.engine.errors import QueueFull
from blora.engine.front_end.admission import Admission, QueueLimits
from blora.engine.front_end.demand import Demand
from blora.scheduler import AdapterUse, FinishReason, Request, RowResult, RowUpdate, SamplingParams, Step, StepCosts

OK, REFUSED, EXPIRED = "OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"
DROPPED = "dropped"  # RESOURCE_EXHAUSTED, after it had waited
ENDS = {FinishReason.DEADLINE: EXPIRED, FinishReason.UNBEGUN: DROPPED}
ADAPTER_PAGES = 2
MACHINE = StepCosts(step_seconds=5e-3, row_seconds=3e-4, token_seconds=3e-4, read_seconds=0.0, pair_seconds=0.0)


@dataclass(slots=True, kw_only=True, eq=False)
class Asked:
    """A request, and what became of it. Times are seconds of the world's clock."""

    arrival: float
    num_prompt_tokens: int
    num_answer_tokens: int
    max_tokens: int | None = None  # None: the server knows the length of the answer
    tenant: str = ""
    adapter: str = ""  # none: the base model
    priority: int = 0
    patience: float | None = None  # from the arrival to the end of the answer
    first_token_patience: float | None = None
    status: str = ""
    retry_after: float | None = None
    token_times: list[float] = field(default_factory=list)

    @property
    def adapters(self) -> tuple[AdapterUse, ...]:
        return ((self.adapter, 1.0),) if self.adapter else ()

    @property
    def wait(self) -> float:
        """For the first token."""
        return self.token_times[0] - self.arrival

    @property
    def token_seconds(self) -> float:
        """Of a later token, in the mean."""
        return (self.token_times[-1] - self.token_times[0]) / max(len(self.token_times) - 1, 1)


def arrivals(
    rate: float,
    seconds: float,
    *,
    seed: int = 0,
    start: float = 0.0,
    prompt: tuple[int, int] = (64, 64),
    answer: tuple[int, int] = (32, 32),
    **fields: object,
) -> Iterator[Asked]:
    """Yields requests of a Poisson process."""
    draw, now = random.Random(seed), start
    while (now := now + draw.expovariate(rate)) < start + seconds:
        lengths = {"num_prompt_tokens": draw.randint(*prompt), "num_answer_tokens": draw.randint(*answer)}
        yield Asked(arrival=now, **lengths, **fields)  # type: ignore[arg-type]


class OverloadWorld:
    def __init__(
        self,
        *,
        max_seconds: float | None = None,
        max_tokens: int | None = None,
        max_requests: int = 4096,
        num_seats: int = 64,
        num_batched_tokens: int = 256,
        num_pages: int = 4096,
        target_itl: float | None = None,
        noise: float = 0.1,
        costs: StepCosts = MACHINE,
        adapters: Sequence[str] = (),
    ) -> None:
        self.now = 0.0
        self._costs, self._noise, self._draw = costs, noise, random.Random(0)
        self.scheduler, residency, _ = make_scheduler(
            num_pages, 16, num_batched_tokens, num_seats, is_timed=True, target_itl=target_itl
        )
        for adapter in adapters:
            residency.register(adapter, ADAPTER_PAGES)
        limits = QueueLimits(max_requests, max_tokens, max_seconds)
        self.admission = Admission(limits, "fair", num_seats, (), lambda: self.now)
        self._asked: dict[int, Asked] = {}  # unfinished
        self._sent: list[Request] = []  # that the engine has not received: it listens between steps
        self.num_steps = 0

    def run(self, asked: Sequence[Asked]) -> None:
        """Serves all requests."""
        queue = sorted(asked, key=lambda one: one.arrival)
        place = 0
        while place < len(queue) or self.scheduler.has_work or self._sent:
            if not self.scheduler.has_work and not self._sent:
                self.now = max(self.now, queue[place].arrival)
            step, seconds = self._plan()
            end = self.now + seconds
            while place < len(queue) and queue[place].arrival <= end:
                self._end_late(queue[place].arrival)
                self.now = max(self.now, queue[place].arrival)
                self._ask(place, queue[place])
                place += 1
            self.now = end
            self._commit(step, seconds)
            self._end_late(end)
        self.admission.check_integrity(self._asked)
        assert not self._asked and self.admission.facts.num_queued_tokens == 0

    def _ask(self, request_id: int, asked: Asked) -> None:
        limit = asked.max_tokens or asked.num_answer_tokens
        demand = Demand(
            tenant=asked.tenant,
            priority=asked.priority,
            flow=asked.adapters,
            weights=(1.0, 1.0),
            num_prompt_tokens=asked.num_prompt_tokens,
            num_samples=1,
            max_tokens=limit,
            num_certain_tokens=limit if asked.max_tokens is None else 1,
            deadline=_after(asked.arrival, asked.patience),
            first_token_deadline=_after(asked.arrival, asked.first_token_patience),
        )
        try:
            self.admission.check([demand])
        except QueueFull as error:
            asked.status, asked.retry_after = REFUSED, error.retry_after
            return
        self.admission.enter(request_id, demand)
        self._asked[request_id] = asked
        self._sent.append(self._request(request_id, asked, demand))

    def _request(self, request_id: int, asked: Asked, demand: Demand) -> Request:
        return Request(
            request_id=request_id,
            prompt_token_ids=[request_id] * asked.num_prompt_tokens,
            sampling=SamplingParams(),
            max_tokens=asked.num_answer_tokens,
            seed=0,
            priority=asked.priority,
            tenant=asked.tenant,
            adapters=asked.adapters,
            deadline=demand.deadline,
            begin_by=self.admission.begin_by(),
        )

    def _plan(self) -> tuple[Step, float]:
        for request in self._sent:
            self.scheduler.add(request)
        self._sent.clear()
        step = self.scheduler.schedule(self.now)
        if not step.rows:
            return step, 1e-4
        self.num_steps += 1
        return step, self._costs.seconds(step.work) * self._draw.uniform(1 - self._noise, 1 + self._noise)

    def _commit(self, step: Step, seconds: float) -> None:
        results = {row.request_id: RowResult(1 if row.is_sampled else None) for row in step.rows}
        self.scheduler.note_seconds(step, 0.0, seconds)
        report = self.scheduler.report(step, seconds) if step.rows else None
        for update in self.scheduler.update(step, results):
            if update.request_id in self._asked:
                self._note(self._asked[update.request_id], update)
        self.admission.note_step(report, self.scheduler.step_time.take_costs())

    def _note(self, asked: Asked, update: RowUpdate) -> None:
        if update.token_ids:
            if not asked.token_times:
                self.admission.note_first_token(update.request_id, update.num_cached_tokens)
            asked.token_times.append(self.now)
        if update.finish_reason is not None:
            self._leave(update.request_id, ENDS.get(update.finish_reason, OK))

    def _end_late(self, now: float) -> None:
        """The front end's alarm for first tokens that nobody waits for any more."""
        for request_id, asked in list(self._asked.items()):
            limit = _after(asked.arrival, asked.first_token_patience)
            if limit is not None and limit <= now and not asked.token_times:
                self._sent = [request for request in self._sent if request.request_id != request_id]
                self.scheduler.finish(request_id)
                self._leave(request_id, EXPIRED)

    def _leave(self, request_id: int, status: str) -> None:
        asked = self._asked.pop(request_id)
        asked.status = status
        self.admission.leave(request_id, len(asked.token_times) if status == OK else None, status != OK)


def _after(time: float, patience: float | None) -> float | None:
    return None if patience is None else time + patience
