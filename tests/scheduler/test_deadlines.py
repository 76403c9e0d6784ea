"""A request whose deadline has passed is not computed any more, and ends once."""

import pytest
from fakes import CheckingRunner, make_request, make_scheduler

from blora.scheduler import FinishReason, RowUpdate, SamplingParams, Scheduler


def run_step(scheduler: Scheduler, runner: CheckingRunner, now: float) -> list[RowUpdate]:
    step = scheduler.schedule(now)
    runner.begin_copies(step)
    updates = scheduler.update(step, runner.execute(step))
    scheduler.check_integrity()
    return updates


def ends(updates: list[RowUpdate]) -> dict[int, FinishReason]:
    return {update.request_id: update.finish_reason for update in updates if update.finish_reason is not None}


def test_what_has_expired_in_the_queue_is_dropped_before_it_is_computed() -> None:
    scheduler, _, pool = make_scheduler(max_num_seqs=1)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1, 2, 3], 3))
    scheduler.add(make_request(1, [4, 5, 6], 3, deadline=5.0))
    scheduler.add(make_request(2, [7, 8, 9], 1, deadline=50.0))
    seen = [ends(run_step(scheduler, runner, now)) for now in (4.0, 4.5, 5.0, 6.0)]
    assert seen == [{}, {}, {1: FinishReason.DEADLINE, 0: FinishReason.LENGTH}, {2: FinishReason.LENGTH}]
    assert not any(token in (4, 5, 6) for token, *_ in runner.cells.values())  # type: ignore[misc]
    assert not scheduler.has_work and pool.num_free == pool.num_pages


def test_what_has_expired_stops_within_a_step_and_gives_everything_back() -> None:
    scheduler, residency, pool = make_scheduler(max_num_batched_tokens=4)
    residency.register("digest", 1)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, list(range(20)), 9, adapters=(("digest", 1.0),), deadline=2.0))
    for now in (0.0, 1.0):
        assert ends(run_step(scheduler, runner, now)) == {}
    assert scheduler.num_running == 1
    step = scheduler.schedule(2.0)
    assert not step.rows and scheduler.has_work  # its end is still to be told
    (update,) = scheduler.update(step, {})
    assert (update.request_id, update.finish_reason) == (0, FinishReason.DEADLINE)
    residency.unregister("digest")
    assert not scheduler.has_work and pool.num_free == pool.num_pages


def test_samples_go_on_when_their_leaders_deadline_passes() -> None:
    scheduler, *_ = make_scheduler(max_num_batched_tokens=4)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, list(range(10)), 2, deadline=1.0))
    scheduler.add(make_request(1, list(range(10)), 2, leader=0))
    told = [ends(run_step(scheduler, runner, float(now))) for now in range(6)]
    assert [entry for entry in told if entry] == [{0: FinishReason.DEADLINE}, {1: FinishReason.LENGTH}]


@pytest.mark.parametrize("is_running", [False, True])
def test_what_ends_before_its_deadline_is_told_once(is_running: bool) -> None:
    scheduler, *_ = make_scheduler()
    scheduler.add(make_request(0, [1, 2, 3], 3, deadline=1.0))
    if is_running:
        run_step(scheduler, CheckingRunner(4), 0.0)
    scheduler.finish(0)
    assert run_step(scheduler, CheckingRunner(4), 2.0) == [] and not scheduler.has_work


# Requests that wait too long to be begun.


def test_what_is_not_begun_in_time_is_dropped_before_it_is_computed() -> None:
    scheduler, _, pool = make_scheduler(max_num_seqs=1)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1, 2, 3], 3, begin_by=1.0))
    scheduler.add(make_request(1, [4, 5, 6], 3, begin_by=2.0))
    scheduler.add(make_request(2, [7, 8, 9], 1, begin_by=9.0))
    seen = [ends(run_step(scheduler, runner, now)) for now in (0.5, 1.5, 2.5, 3.0)]
    assert seen == [{}, {}, {1: FinishReason.UNBEGUN, 0: FinishReason.LENGTH}, {2: FinishReason.LENGTH}]
    assert not any(token in (4, 5, 6) for token, *_ in runner.cells.values())  # type: ignore[misc]
    assert not scheduler.has_work and pool.num_free == pool.num_pages


@pytest.mark.parametrize("has_cache", [False, True])
def test_samples_are_begun_with_their_leader(has_cache: bool) -> None:
    scheduler, *_ = make_scheduler(max_num_seqs=1, enable_prefix_caching=has_cache)
    runner = CheckingRunner(4)
    for number in range(3):
        leader = None if number == 0 else 0
        sampling = SamplingParams(n=3)
        scheduler.add(make_request(number, [1, 2, 3], 2, leader=leader, sampling=sampling, begin_by=1.0))
    scheduler.add(make_request(9, [1, 2, 3], 2, begin_by=1.0))
    told = [ends(run_step(scheduler, runner, float(now))) for now in range(7)]
    assert {key: reason for entry in told for key, reason in entry.items()} == {
        0: FinishReason.LENGTH,
        1: FinishReason.LENGTH,
        2: FinishReason.LENGTH,
        9: FinishReason.UNBEGUN,
    }


def test_no_sample_is_computed_whose_leader_was_not_begun_in_time() -> None:
    scheduler, *_ = make_scheduler(max_num_seqs=1)
    runner = CheckingRunner(4)
    scheduler.add(make_request(7, [1, 2, 3], 5))
    for number in range(3):
        leader, sampling = None if number == 0 else 0, SamplingParams(n=3)
        scheduler.add(make_request(number, [4, 5, 6], 2, leader=leader, sampling=sampling, begin_by=1.0))
    told = [ends(run_step(scheduler, runner, float(now))) for now in range(2)]
    assert told[1] == dict.fromkeys(range(3), FinishReason.UNBEGUN)


def test_what_was_preempted_has_been_begun() -> None:
    scheduler, *_ = make_scheduler()
    runner = CheckingRunner(4)
    request = make_request(0, [1, 2, 3], 3, begin_by=1.0)
    scheduler.add(request)
    run_step(scheduler, runner, 0.0)
    scheduler._preempt(request, scheduler._begin_plan(0.0))
    assert [ends(run_step(scheduler, runner, float(now))) for now in (5, 6)] == [{}, {0: FinishReason.LENGTH}]
