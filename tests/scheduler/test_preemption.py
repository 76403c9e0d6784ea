"""Preemption: it is rare however short memory is, loses little, and nobody is preempted time and again (gate E5)."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from fakes import CheckingRunner, make_request, make_scheduler

from blora.bench.simulation import BLOCK_SIZE, Machine, Outcome, simulate
from blora.bench.trace import Arrival
from blora.scheduler import (
    DEFAULT_FAIRNESS,
    FinishReason,
    Request,
    SamplingParams,
    Scheduler,
    StructuredOutputsParams,
)
from blora.scheduler.forecast import MemoryForecast

SEATS = 16
Lengths = tuple[int, int]


def arrivals(num_requests: int, prompts: Lengths, outputs: Lengths, num_tenants: int) -> list[Arrival]:
    draw = random.Random(f"{prompts} {outputs}")
    return [
        Arrival(0.001 * index, 0, draw.randint(*prompts), draw.randint(*outputs), tenant=str(index % num_tenants))
        for index in range(num_requests)
    ]


def may_stop(request_id: int, prompt: list[int], max_tokens: int) -> Request:
    """A request whose answer may be shorter than max_tokens."""
    return make_request(request_id, prompt, max_tokens, eos_token_ids=frozenset({2}))


def num_blocks(arrival: Arrival) -> int:
    return -(-(arrival.input_len + arrival.output_len) // BLOCK_SIZE)


def serve(trace: list[Arrival], times: float) -> Outcome:
    """Serves a trace with memory for a `times`-th of what the running requests would take."""
    wanted = sum(map(num_blocks, trace)) * SEATS // len(trace)
    num_pages = max(int(wanted / times), max(map(num_blocks, trace)) + 2)
    machine = Machine(num_pages=num_pages, adapter_pages=[1], max_num_seqs=SEATS)
    return simulate(trace, machine, "fair", DEFAULT_FAIRNESS)


def check(trace: list[Arrival], outcome: Outcome, most_recomputed: float) -> None:
    needed = sum(arrival.input_len + arrival.output_len - 1 for arrival in trace)
    assert [len(times) for times in outcome.token_times] == [arrival.output_len for arrival in trace]
    assert outcome.computed_tokens <= (1 + most_recomputed) * needed
    assert max(outcome.num_preemptions) <= 3


@pytest.mark.parametrize(("times", "num_tenants"), [(3, 1), (5, 4), (10, 4)])
@pytest.mark.parametrize(
    ("prompts", "outputs"), [((50, 200), (50, 400)), ((20, 60), (200, 400))], ids=["mixed", "long-outputs"]
)
@pytest.mark.slow
def test_little_is_computed_again(times: int, prompts: Lengths, outputs: Lengths, num_tenants: int) -> None:
    trace = arrivals(48, prompts, outputs, num_tenants)
    check(trace, serve(trace, times), most_recomputed=0.05)


@pytest.mark.slow
def test_outputs_that_become_longer_than_all_before_cost_little() -> None:
    short, long = arrivals(48, (20, 60), (5, 20), 3), arrivals(48, (20, 60), (200, 400), 3)
    trace = short + [replace(arrival, seconds=1 + arrival.seconds) for arrival in long]
    check(trace, serve(trace, 5), most_recomputed=0.1)


def run_step(scheduler: Scheduler, runner: CheckingRunner) -> None:
    scheduler.update(step := scheduler.schedule(), runner.execute(step))
    scheduler.check_integrity()


def test_who_loses_least_makes_way() -> None:
    """The second request has computed the fewest tokens that nobody else holds."""
    scheduler, *_ = make_scheduler(num_pages=15, max_num_batched_tokens=64, is_blind=True)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1] * 20, 30))
    run_step(scheduler, runner)
    scheduler.add(make_request(1, [1] * 18 + [2] * 2, 30))
    scheduler.add(make_request(2, [3] * 20, 30))
    requests = list(scheduler._requests.values())
    while not scheduler.num_preemptions:
        run_step(scheduler, runner)
    assert [request.num_preemptions for request in requests] == [0, 1, 0]


def test_a_preempted_request_finds_its_blocks_again() -> None:
    """The blocks of requests that ended go first, though they were used last."""
    scheduler, *_ = make_scheduler(num_pages=14, max_num_batched_tokens=64, policy="priority", is_blind=True)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1] * 16, 8, priority=1))
    run_step(scheduler, runner)
    plan = scheduler._begin_plan(0.0)
    request = scheduler._running[0]
    scheduler._preempt(request, plan)
    for request_id in range(1, 6):  # each takes the pages of the one before, not those that are awaited
        scheduler.add(make_request(request_id, [request_id + 1] * 20, 9))
        while request_id in scheduler._requests:
            run_step(scheduler, runner)
    assert request.num_computed_tokens >= 16


def test_what_has_ended_tells_how_long_outputs_become() -> None:
    forecast = MemoryForecast(4)
    request = may_stop(0, [1] * 8, 1000)
    assert forecast.num_further_tokens(request) == 512
    for length in range(1, 101):
        ended = may_stop(1, [1], 1000)
        ended.token_ids += [7] * length
        forecast.note_end(ended)
    assert forecast.num_further_tokens(request) == 90
    request.token_ids += [7] * 60
    assert forecast.num_further_tokens(request) == 96 - 60
    request.token_ids += [7] * 60
    assert forecast.num_further_tokens(request) == 120
    request.num_preemptions = 1
    assert forecast.num_further_tokens(request) == 1000 - 120
    assert forecast.num_further_tokens(may_stop(2, [1], 10)) == 10


def test_what_still_runs_tells_too() -> None:
    """Short outputs end first. Of ten that began together, those of 10, 20 and 30 tokens have ended."""
    forecast = MemoryForecast(4)
    running = [may_stop(index, [1] * 8, 1000) for index in range(10)]
    for length in range(1, 31):
        for request in running:
            request.token_ids.append(7)
        if length % 10 == 0:
            forecast.note_end(running.pop(), running)
    assert [forecast.num_further_tokens(request) for request in (running[0], may_stop(0, [1], 1000))] == [482, 512]
    for _ in range(90):
        forecast.note_end(running[-1], [])  # 90 more outputs of 30 tokens
    assert forecast.num_further_tokens(may_stop(0, [1], 1000)) == 30
    assert forecast.num_further_tokens(running[0]) == 30  # nothing is known of longer ones


def test_a_length_that_is_certain_needs_no_guess() -> None:
    forecast = MemoryForecast(4)
    for _ in range(100):
        ended = may_stop(1, [1], 1000)
        ended.token_ids.append(7)
        forecast.note_end(ended)
    assert forecast.num_further_tokens(make_request(0, [1], 700)) == 700
    kinds = (SamplingParams(stop=["x"]), SamplingParams(structured_outputs=StructuredOutputsParams(regex="x")))
    for sampling in kinds:
        assert forecast.num_further_tokens(make_request(0, [1], 700, sampling=sampling)) == 1


def test_only_the_latest_outputs_count() -> None:
    forecast = MemoryForecast(4)
    for length in [900] * 300 + [5] * 256:
        ended = may_stop(1, [1], 1000)
        ended.token_ids += [7] * length
        forecast.note_end(ended)
    assert forecast.num_further_tokens(may_stop(0, [1], 1000)) == 5


def test_the_need_is_greatest_before_a_request_ends() -> None:
    """Three requests of 8 known tokens, which generate 4, 8 and 40 more: 3 blocks each, then 4, then 12."""
    forecast = MemoryForecast(4)
    requests = [make_request(index, [1] * 8, length) for index, length in enumerate((4, 8, 40))]
    needs = [forecast.num_blocks(requests[:count]) for count in (1, 2, 3)]
    assert needs[0] >= 3 and needs[1] >= 6 and needs[2] >= 12
    assert all(one <= other <= one + 13 for one, other in pairwise(needs))


def test_a_request_that_ends_makes_room_for_one_that_would_not_have_fitted() -> None:
    scheduler, *_ = make_scheduler(num_pages=10, max_num_batched_tokens=64)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1] * 8, 16))
    scheduler.add(make_request(1, [2] * 8, 16))
    run_step(scheduler, runner)
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    scheduler.finish(0, FinishReason.ABORT)
    run_step(scheduler, runner)
    assert scheduler.num_running == 1 and not scheduler.num_preemptions


def test_an_urgent_request_displaces_only_what_makes_room_for_it() -> None:
    scheduler, *_ = make_scheduler(num_pages=10, max_num_batched_tokens=64, policy="priority")
    runner = CheckingRunner(4)
    for request_id in range(2):
        scheduler.add(make_request(request_id, [request_id] * 10, 6, priority=1))
    run_step(scheduler, runner)
    scheduler.add(make_request(2, [2] * 10, 8, priority=0))
    run_step(scheduler, runner)
    assert (scheduler.num_running, scheduler.num_preemptions) == (2, 1)
    scheduler.add(make_request(3, [3] * 16, 12, priority=0))  # waits for the other urgent one, and displaces nobody
    run_step(scheduler, runner)
    assert (scheduler.num_running, scheduler.num_preemptions) == (2, 1)
