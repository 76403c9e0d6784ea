"""Fair shares and the starvation bound: checked by examples, and by an oracle over random traces."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from fakes import make_request, make_scheduler

from blora.scheduler import Fairness, Request, RowResult, Scheduler, Status, Step
from blora.scheduler.waiting_queue import WaitingQueue

INPUT, OUTPUT = 1.0, 2.0


def run_step(scheduler: Scheduler) -> Step:
    step = scheduler.schedule()
    scheduler.update(step, {row.request_id: RowResult(7 if row.is_sampled else None) for row in step.rows})
    return step


def served_tokens(scheduler: Scheduler, owners: dict[int, str], num_steps: int) -> Counter[str]:
    served: Counter[str] = Counter()
    for _ in range(num_steps):
        for row in run_step(scheduler).rows:
            served[owners[row.request_id]] += row.num_new_tokens
    return served


def flood(scheduler: Scheduler, owner: dict[int, str], tenant: str, count: int, **fields: object) -> None:
    for _ in range(count):
        request_id = len(owner)
        owner[request_id] = tenant
        scheduler.add(make_request(request_id, [1 + request_id] * 4, 8, tenant=tenant, **fields))


def test_a_flood_of_one_tenant_takes_no_more_than_its_share() -> None:
    scheduler, *_ = make_scheduler(num_pages=200, max_num_seqs=4, max_num_batched_tokens=64)
    owner: dict[int, str] = {}
    flood(scheduler, owner, "many", 200)
    flood(scheduler, owner, "few", 20)
    served = served_tokens(scheduler, owner, 80)
    assert served["few"] == pytest.approx(served["many"], rel=0.15)


def test_weights_divide_the_service() -> None:
    scheduler, *_ = make_scheduler(num_pages=200, max_num_seqs=4, max_num_batched_tokens=64)
    owner: dict[int, str] = {}
    flood(scheduler, owner, "one", 100)
    flood(scheduler, owner, "three", 100, weights=(3.0, 1.0))
    served = served_tokens(scheduler, owner, 150)
    assert served["three"] == pytest.approx(3 * served["one"], rel=0.15)


def test_a_tenant_has_one_share_however_many_adapters_it_uses() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=200, max_num_seqs=4, max_num_batched_tokens=64)
    owner: dict[int, str] = {}
    flood(scheduler, owner, "one", 60)
    for index in range(10):
        residency.register(f"adapter{index}", 1)
        flood(scheduler, owner, "ten", 6, adapters=((f"adapter{index}", 1.0),))
    served = served_tokens(scheduler, owner, 100)
    assert served["ten"] == pytest.approx(served["one"], rel=0.15)


def test_who_stayed_away_has_saved_up_nothing() -> None:
    scheduler, *_ = make_scheduler(num_pages=200, max_num_seqs=4, max_num_batched_tokens=64)
    owner: dict[int, str] = {}
    flood(scheduler, owner, "busy", 200)
    served_tokens(scheduler, owner, 60)
    flood(scheduler, owner, "late", 100)
    served = served_tokens(scheduler, owner, 60)
    assert served["late"] == pytest.approx(served["busy"], rel=0.2)


def test_a_resident_adapter_goes_before_one_that_would_evict_it_until_the_bound() -> None:
    fairness = Fairness(max_passed_over=60)
    scheduler, residency, pool = make_scheduler(
        num_pages=10, max_num_seqs=1, copied_pages_per_step=9, fairness=fairness
    )
    for digest in ("hot", "cold"):
        residency.register(digest, 6)
    for request_id in range(12):
        digest = "cold" if request_id == 1 else "hot"
        scheduler.add(make_request(request_id, [request_id] * 4, 4, adapters=((digest, 1.0),)))
    order: list[int] = []
    while scheduler.has_work:
        order += [row.request_id for row in run_step(scheduler).rows if not row.start]
    assert 3 <= order.index(1) <= 7
    assert pool.num_evicted_adapters == 2  # hot makes way for cold, then cold for hot


class Oracle(WaitingQueue):
    """Watches the scheduler's calls to its queue, counts anew for how many tokens each request was passed over, and
    checks each decision."""

    def __init__(self, bound: float) -> None:
        super().__init__("fair", Fairness(max_passed_over=bound))
        self.bound = bound
        self.waiting: dict[int, Request] = {}
        self.running: dict[int, Request] = {}
        self.passed: Counter[int] = Counter()  # priced tokens
        self.preempted: set[int] = set()
        self.num_bounded = 0

    def is_overdue(self, request: Request) -> bool:
        return self.passed[request.request_id] >= self.bound or request.request_id in self.preempted

    def flow(self, request: Request) -> object:
        return (request.priority, request.tenant, request.adapters)

    def heads(self) -> list[Request]:
        """Returns the first request of each flow, among the waiting ones that are not overdue."""
        first: dict[object, Request] = {}
        for request in sorted(self.waiting.values(), key=lambda request: request.arrival):
            if not self.is_overdue(request):
                first.setdefault(self.flow(request), request)
        return list(first.values())

    def push(self, request: Request) -> None:
        super().push(request)
        if self.running.pop(request.request_id, None) is not None:
            if self.is_overdue(request):
                self.check_preemption(request)
            self.preempted.add(request.request_id)
        self.waiting[request.request_id] = request

    def check_preemption(self, victim: Request) -> None:
        """An overdue request is preempted only for requests that are more urgent or overdue for longer, and after all
        others of its priority."""
        for request in self.running.values():
            if request.priority >= victim.priority:
                assert request.priority == victim.priority and self.is_overdue(request), (request, victim)
                assert request.arrival < victim.arrival, (request, victim)

    def take(self, request: Request) -> None:
        """No request goes before an overdue one, unless it is more urgent, or as urgent and overdue, too."""
        super().take(request)
        del self.waiting[request.request_id]
        bounded = [other for other in self.waiting.values() if self.is_overdue(other)]
        self.num_bounded += len(bounded)
        for other in bounded:
            assert request.priority <= other.priority, (request, other)
            assert request.priority < other.priority or self.is_overdue(request), (request, other)
        self.running[request.request_id] = request

    def forget(self, request: Request) -> None:
        if request.request_id in self.waiting:
            super().take(request)  # without serving the request
            del self.waiting[request.request_id]
        super().forget(request)
        self.running.pop(request.request_id, None)

    def charge_input(self, request: Request, num_tokens: int) -> None:
        super().charge_input(request, num_tokens)
        self.serve(request, num_tokens * INPUT)

    def charge_output(self, request: Request, num_tokens: int) -> None:
        super().charge_output(request, num_tokens)
        self.serve(request, num_tokens * OUTPUT)

    def serve(self, served: Request, tokens: float) -> None:
        for head in self.heads():
            if head.priority == served.priority and self.flow(head) != self.flow(served):
                self.passed[head.request_id] += tokens


def run_trace(seed: int) -> int:
    draw = random.Random(seed)
    scheduler, residency, _ = make_scheduler(
        num_pages=draw.randint(12, 24),
        max_num_seqs=draw.randint(1, 6),
        max_num_batched_tokens=draw.randint(4, 24),
        is_blind=draw.random() < 0.7,
    )
    oracle = scheduler._waiting = Oracle(draw.choice([0.5, 10.0, 40.0, 150.0]))
    sizes = [draw.randint(1, 4) for _ in range(5)]
    for index, size in enumerate(sizes):
        residency.register(str(index), size)
    requests: dict[int, Request] = {}
    num_left = draw.randint(8, 24)
    while num_left or requests:
        while num_left and draw.random() < 0.6:
            num_left -= 1
            pick = min(int(draw.expovariate(0.5)), 5)
            adapters = ((str(pick), 1.0),) if pick < 5 else ()
            request = make_request(
                num_left,
                [draw.randint(0, 9) for _ in range(draw.randint(1, 12))],
                draw.randint(1, 12),
                adapters=adapters,
                tenant=draw.choice("aab"),
                priority=draw.choice([0, 0, 0, 1]),
            )
            scheduler.add(request)
            requests[num_left] = request
        if requests and draw.random() < 0.05:
            request_id = draw.choice(list(requests))
            scheduler.finish(request_id)
            del requests[request_id]
        run_step(scheduler)
        for request_id in [i for i, request in requests.items() if request.status is Status.FINISHED]:
            del requests[request_id]
    scheduler.check_integrity()
    return oracle.num_bounded


@pytest.mark.grid
def test_nobody_is_passed_over_beyond_the_bound_in_random_traces(cases: Callable[[int, int], int]) -> None:
    num_traces = cases(120, 1000)
    assert sum(map(run_trace, range(num_traces))) > num_traces  # requests were overdue, so the bound was tested
