"""CopyBudget: copies beside rows take a share of a step; copies without rows are limited only in number."""

import pytest
from fakes import make_request, make_scheduler

from blora.scheduler.copy_budget import SHARE, CopyBudget
from blora.scheduler.eviction import ReturnCosts

PAGE_SECONDS = 1e-4


def make_budget(max_pages: int = 64) -> CopyBudget:
    return CopyBudget(max_pages, ReturnCosts(adapter=PAGE_SECONDS))


@pytest.mark.parametrize("seconds", [5e-3, 20e-3])
def test_beside_rows_it_is_a_share_of_the_step(seconds: float) -> None:
    budget = make_budget()
    budget.note_step(1, seconds)
    assert budget.num_pages(has_rows=True) == pytest.approx(SHARE * seconds / PAGE_SECONDS, abs=1)
    assert budget.num_pages(has_rows=False) == 64


def test_no_more_than_the_number_and_never_nothing() -> None:
    budget = make_budget(max_pages=8)
    budget.note_step(1, 1.0)
    assert budget.num_pages(has_rows=True) == 8
    budget.note_step(1, 1e-6)
    assert budget.num_pages(has_rows=True) == 1


def test_before_anything_was_measured_the_number_counts() -> None:
    assert make_budget().num_pages(has_rows=True) == 64


def test_a_long_prompt_does_not_widen_the_gaps_after_it() -> None:
    budget = make_budget()
    budget.note_step(8, 10e-3)
    budget.note_step(1, 500e-3)
    budget.note_step(8, 10e-3)
    assert budget.num_pages(has_rows=True) == 20


def test_a_step_without_rows_says_nothing() -> None:
    budget = make_budget()
    budget.note_step(1, 10e-3)
    budget.note_step(0, 1e-6)
    assert budget.num_pages(has_rows=True) == 20


def test_the_scheduler_copies_less_beside_rows() -> None:
    scheduler, residency, pool = make_scheduler(num_pages=64, copied_pages_per_step=16)
    pool.costs.adapter = PAGE_SECONDS
    residency.register("a" * 64, 12)
    scheduler.add(make_request(0, [1, 2, 3], max_tokens=50))
    step = scheduler.schedule()
    scheduler.note_seconds(step, 0.0, 20 * PAGE_SECONDS)
    assert residency.warm("a" * 64)
    step = scheduler.schedule()
    assert [len(copy.page_ids) for copy in step.copies] == [4]
    scheduler.update(step, {})
    scheduler.finish(0)
    assert [len(copy.page_ids) for copy in scheduler.schedule().copies] == [8]
