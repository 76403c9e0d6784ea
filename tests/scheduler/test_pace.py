"""The time of steps: prompts leave decoding rows their pace, tenants share what is left, and nobody stands still."""

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from fakes import make_request, make_scheduler

from blora.bench.simulation import Machine, Outcome, simulate
from blora.bench.trace import Arrival, TraceShape, make_trace
from blora.scheduler import (
    DEFAULT_FAIRNESS,
    PROMPT_CREDIT,
    Request,
    RowResult,
    SamplingParams,
    Scheduler,
    Step,
    StepWork,
)
from blora.scheduler.fair_share import FairShares, Share

PACED = {"num_pages": 4000, "max_num_batched_tokens": 2048, "max_num_seqs": 64, "is_timed": True}


def run_step(scheduler: Scheduler) -> Step:
    step = scheduler.schedule()
    scheduler.update(step, {row.request_id: RowResult(7 if row.is_sampled else None) for row in step.rows})
    return step


def start_decoding(scheduler: Scheduler, num_rows: int) -> None:
    for request_id in range(1000, 1000 + num_rows):
        scheduler.add(make_request(request_id, [request_id], 200))
    run_step(scheduler)


def prompt(request_id: int, length: int, tenant: str = "", **fields: object) -> Request:
    return make_request(request_id, [request_id] * length, 4, tenant=tenant, **fields)


def chunk_sizes(scheduler: Scheduler, num_steps: int) -> list[dict[int, int]]:
    steps = [run_step(scheduler) for _ in range(num_steps)]
    return [{row.request_id: row.num_new_tokens for row in step.rows if row.request_id < 1000} for step in steps]


@pytest.mark.parametrize("num_told", [None, 0], ids=["plain", "with logprobs"])
@pytest.mark.parametrize("num_rows", [1, 8, 40])
def test_a_step_takes_twice_as_long_as_its_decoding_rows_at_most(num_rows: int, num_told: int | None) -> None:
    scheduler, *_ = make_scheduler(**PACED)
    start_decoding(scheduler, num_rows)
    costs = scheduler.step_time.costs
    scheduler.add(prompt(0, 3000, sampling=SamplingParams(prompt_logprobs=num_told)))
    for _ in range(20):
        step = run_step(scheduler)
        decoding = [row.work for row in step.rows if row.num_output_tokens]
        alone = costs.seconds(StepWork.total([StepWork(1), *decoding]))
        assert len(decoding) == num_rows and 1.9 * alone < costs.seconds(step.work) <= 2 * alone


def test_without_decoding_rows_a_step_is_filled_up() -> None:
    scheduler, *_ = make_scheduler(**PACED)
    scheduler.add(prompt(0, 3000))
    assert chunk_sizes(scheduler, 2) == [{0: 2048}, {0: 952}]


def test_a_fixed_number_of_tokens_depends_on_no_time() -> None:
    scheduler, *_ = make_scheduler(**PACED | {"is_timed": False})
    start_decoding(scheduler, 1)
    scheduler.add(prompt(0, 3000))
    assert chunk_sizes(scheduler, 2) == [{0: 2047}, {0: 953}]


def test_a_prompt_gets_on_however_short_the_target_is() -> None:
    scheduler, *_ = make_scheduler(**PACED, target_itl=1e-9)
    start_decoding(scheduler, 1)
    scheduler.add(prompt(0, 10))
    assert chunk_sizes(scheduler, 2) == [{}, {}]  # two rows would take longer than the target
    scheduler.finish(1000)
    scheduler.add(prompt(1, 10))
    assert chunk_sizes(scheduler, 1) == [{0: 10}]


def test_a_block_of_a_prompt_is_computed_in_each_step() -> None:
    scheduler, *_ = make_scheduler(**PACED, target_itl=0.005)
    start_decoding(scheduler, 1)
    scheduler.add(prompt(0, 10))
    scheduler.limits = replace(scheduler.limits, max_num_seqs=64)
    scheduler._pace._target_itl = 1e-9
    scheduler._pace.has_seat = lambda *_: True  # type: ignore[method-assign]
    assert chunk_sizes(scheduler, 3) == [{0: 4}, {0: 4}, {0: 2}]


def test_a_target_bounds_the_rows_that_run_together() -> None:
    """With the default costs a row takes 0.3 ms and a step 5."""
    scheduler, *_ = make_scheduler(**PACED, target_itl=0.008)
    for request_id in range(30):
        scheduler.add(make_request(request_id, [request_id] * 4, 50))
    run_step(scheduler)
    for _ in range(20):
        step = run_step(scheduler)
        assert scheduler.step_time.costs.seconds(step.work) < 0.0085
    assert scheduler.num_running == len(step.rows) == 9


def test_a_tenant_with_many_long_prompts_does_not_keep_another_waiting() -> None:
    scheduler, *_ = make_scheduler(**PACED)
    start_decoding(scheduler, 1)
    for request_id in range(20):
        scheduler.add(prompt(request_id, 500, "many"))
    chunk_sizes(scheduler, 10)
    scheduler.add(prompt(100, 60, "few"))
    chunks = chunk_sizes(scheduler, 9)
    first = [chunk for chunk in chunks if chunk.get(100, 0) > 1]
    assert first == chunks[: len(first)] and sum(chunk[100] for chunk in first) == 60


def test_a_tenant_goes_first_only_up_to_its_credit() -> None:
    scheduler, *_ = make_scheduler(**PACED)
    start_decoding(scheduler, 1)
    for request_id in range(20):
        scheduler.add(prompt(request_id, 500, "many"))
    chunk_sizes(scheduler, 60)
    scheduler.add(prompt(100, 2500, "one"))
    computed: Counter[str] = Counter()
    while computed["many"] < PROMPT_CREDIT:
        for request_id, num_tokens in chunk_sizes(scheduler, 1)[0].items():
            computed["one" if request_id == 100 else "many"] += num_tokens if num_tokens > 1 else 0
    assert computed["one"] - computed["many"] == pytest.approx(PROMPT_CREDIT, abs=64)


def test_a_credit_is_counted_from_a_level_that_never_falls() -> None:
    shares = FairShares[str, Share](Share, credit=10.0)
    busy = shares["busy"]
    shares.start_waiting(busy)
    shares.charge(busy, 100.0)
    for number in range(50):
        share = shares[f"tenant {number}"]
        shares.start_waiting(share)
        assert share.counter == shares.counter_at_start(f"tenant {number}") == 90.0 == shares.counter_at_start("new")
        shares.charge(share, 4.0)
        if number > 2:  # so that somebody with a credit always waits
            shares.stop_waiting(share)
    assert shares.counter_at_start("tenant 49") == 94.0  # its credit is not whole again yet
    for number in range(3):
        shares.stop_waiting(shares[f"tenant {number}"])
    shares.charge(busy, 1000.0)
    shares.stop_waiting(busy)
    assert shares.counter_at_start("tenant 49") == 1090.0


@pytest.mark.parametrize("credit", [0.0, 10.0])
def test_names_without_end_are_forgotten(credit: float) -> None:
    shares = FairShares[int, Share](Share, credit)
    shares.start_waiting(shares[0])
    for number in range(1, 5000):
        share = shares[number]
        shares.start_waiting(share)
        shares.charge(share, 4.0)
        shares.stop_waiting(share)
    assert len(shares._parties) <= 3000 and 0 in shares._parties and 4999 in shares._parties
    shares.check_integrity()


@pytest.mark.parametrize(("weight", "ratio"), [(1.0, 1.0), (3.0, 3.0)])
def test_prompts_that_are_partly_computed_share_by_weight(weight: float, ratio: float) -> None:
    scheduler, *_ = make_scheduler(**PACED)
    start_decoding(scheduler, 4)
    for request_id in range(20):
        scheduler.add(prompt(request_id, 700, "many"))
    scheduler.add(prompt(100, 2500, "one", weights=(weight, 1.0)))
    computed: Counter[str] = Counter()
    for chunk in chunk_sizes(scheduler, 80):
        for request_id, num_tokens in chunk.items():
            computed["one" if request_id == 100 else "many"] += num_tokens if num_tokens > 1 else 0
    assert computed["one"] == pytest.approx(ratio * computed["many"], rel=0.15)


def test_no_more_prompts_are_begun_than_are_computed() -> None:
    """A prompt holds memory from its first chunk on."""
    scheduler, *_ = make_scheduler(**PACED)
    start_decoding(scheduler, 2)
    for request_id in range(40):
        scheduler.add(prompt(request_id, 130, "a"))
    for _ in range(60):
        run_step(scheduler)
        assert sum(request.num_missing_tokens > 1 for request in scheduler._running) <= 2


SECONDS = 12
FEW = TraceShape(adapters=1, rate=2.0, seconds=SECONDS, alpha=1.0, input_len=(50, 150), output_len=(48, 80))
MANY = replace(FEW, rate=40.0, input_len=(400, 400), output_len=(16, 48))


def arrivals(shape: TraceShape, tenant: int) -> list[Arrival]:
    trace = make_trace(replace(shape, seed=tenant))
    return [replace(arrival, adapter=tenant, tenant=str(tenant)) for arrival in trace]


@cache
def serve(has_flood: bool, is_timed: bool) -> tuple[list[Arrival], Outcome]:
    """Four tenants with a fair share of requests each, and a fifth one with 20 times as many, of longer prompts."""
    trace = [arrival for tenant in range(4) for arrival in arrivals(FEW, tenant)]
    if has_flood:
        trace += arrivals(MANY, 4)
    trace.sort(key=lambda arrival: arrival.seconds)
    machine = Machine(
        num_pages=8000, adapter_pages=[1] * 5, max_num_seqs=64, max_num_batched_tokens=2048, is_timed=is_timed
    )
    return trace, simulate(trace, machine, "fair", DEFAULT_FAIRNESS, until=SECONDS)


def num_finished(has_flood: bool, is_timed: bool) -> int:
    """Requests of the four tenants that ended, of those that did not come in the last two seconds."""
    trace, outcome = serve(has_flood, is_timed)
    counted = [
        len(times) == arrival.output_len
        for arrival, times in zip(trace, outcome.token_times, strict=True)
        if arrival.tenant != "4" and arrival.seconds < SECONDS - 2
    ]
    return sum(counted)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def test_a_neighbour_with_20_times_its_share_takes_nothing_from_others() -> None:
    assert num_finished(True, True) >= 0.9 * num_finished(False, True)


def test_gaps_between_tokens_stay_short_beside_a_flood_of_prompts() -> None:
    _, paced = serve(True, True)
    _, filled = serve(True, False)
    assert percentile(paced.slowdowns, 0.99) < 2.2 < 20 < percentile(filled.slowdowns, 0.99)
