"""CopyBudget: copies beside rows take a share of a step; copies without rows are limited only in number."""

import pytest
from fakes import make_request, make_scheduler

from blora.scheduler import RowResult
from blora.scheduler.copy_budget import SHARE, CopyBudget
from blora.scheduler.eviction import ReturnCosts

PAGE_SECONDS = 1e-4


def make_budget(max_pages: int = 64) -> CopyBudget:
    return CopyBudget(max_pages, ReturnCosts(adapter=PAGE_SECONDS))


@pytest.mark.parametrize("seconds", [5e-3, 20e-3])
def test_beside_rows_it_is_a_share_of_the_step(seconds: float) -> None:
    assert make_budget().num_pages(seconds) == pytest.approx(SHARE * seconds / PAGE_SECONDS, abs=1)


def test_without_rows_the_number_counts() -> None:
    assert make_budget().num_pages(None) == 64


def test_no_more_than_the_number_and_never_nothing() -> None:
    assert make_budget(max_pages=8).num_pages(1.0) == 8
    assert make_budget(max_pages=8).num_pages(1e-6) == 1


def test_a_long_prompt_does_not_widen_the_gaps_after_it() -> None:
    scheduler, residency, pool = make_scheduler(num_pages=200, copied_pages_per_step=64, max_num_batched_tokens=512)
    pool.costs.adapter = PAGE_SECONDS
    scheduler.add(make_request(0, [1] * 400, max_tokens=50))
    sizes = []
    for index in range(4):
        if index == 2:
            residency.register("a" * 64, 60)
            assert residency.warm("a" * 64)
        step = scheduler.schedule()
        scheduler.note_seconds(step, 0.0, 0.5 if index == 0 else 10e-3)
        scheduler.update(step, {0: RowResult(1)})
        sizes += [len(copy.page_ids) for copy in step.copies]
    assert 5 < sizes[0] < 40


def test_the_scheduler_copies_less_beside_rows() -> None:
    scheduler, residency, pool = make_scheduler(num_pages=64, copied_pages_per_step=16)
    pool.costs.adapter = PAGE_SECONDS
    residency.register("a" * 64, 12)
    scheduler.add(make_request(0, [1, 2, 3], max_tokens=50))
    step = scheduler.schedule()
    scheduler.note_seconds(step, 0.0, 20 * PAGE_SECONDS)
    scheduler.update(step, {0: RowResult(1)})
    assert residency.warm("a" * 64)
    step = scheduler.schedule()
    num_copied = int(SHARE * scheduler.step_time.costs.seconds(step.work) / PAGE_SECONDS)
    assert [len(copy.page_ids) for copy in step.copies] == [num_copied] and 2 <= num_copied <= 5
    scheduler.update(step, {})
    scheduler.finish(0)
    assert [len(copy.page_ids) for copy in scheduler.schedule().copies] == [12 - num_copied]
