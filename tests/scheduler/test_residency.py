"""The adapters in the arena: they are held whole or not at all, copied a few pages a step, and parked when idle."""

import pytest

from blora.scheduler import AdapterResidency, BlockPool, CopyCounts, PageCopy


def make(num_pages: int = 16, are_copies_beside_rows: bool = False, **adapters: int) -> AdapterResidency:
    residency = AdapterResidency(BlockPool(num_pages), 4, are_copies_beside_rows)
    for digest, num in adapters.items():
        residency.register(digest, num)
    return residency


def use(*digests: str) -> list[tuple[str, float]]:
    return [(digest, 1.0) for digest in digests]


def copy(residency: AdapterResidency, budget: int = 100) -> list[PageCopy]:
    """Plans and runs the copies of a step."""
    residency.begin_plan()
    copies = residency.plan_copies(budget)
    residency.commit_copies(copies)
    return copies


def sizes(copies: list[PageCopy]) -> list[tuple[str, int, int]]:
    return [(copy.digest, copy.first, len(copy.page_ids)) for copy in copies]


def start(residency: AdapterResidency, *digests: str) -> None:
    """Accepts and admits a request."""
    residency.expect(use(*digests))
    assert residency.acquire(use(*digests))


def end(residency: AdapterResidency, *digests: str) -> None:
    residency.release(use(*digests))
    residency.forget(use(*digests))


def test_pages_are_counted_once_for_each_distinct_adapter() -> None:
    residency = make(one=3, two=4)
    uses = use("one", "two", "one")
    assert residency.num_pages(uses) == residency.num_needed(uses) == 7
    assert not residency.has_pages(uses) and not residency.has_pages([])
    start(residency, "one")
    assert residency.num_needed(uses) == 4 and residency.num_held_pages == 3
    assert residency.has_pages(use("one")) and not residency.has_pages(uses)
    residency.check_integrity(use("one"), use("one"))


def test_an_adapter_must_evict_only_what_the_empty_pages_lack() -> None:
    residency = make(8, one=4, two=4, three=1)
    assert not residency.must_evict(use("one", "two")) and residency.must_evict(use("one", "two", "three"))
    start(residency, "one", "two")
    assert residency.must_evict(use("three")) and not residency.must_evict(use("one"))
    copy(residency)
    end(residency, "one", "two")
    assert residency.must_evict(use("three")) and not residency.must_evict(use("one", "two"))  # they are parked


def test_a_list_is_held_whole_or_not_at_all() -> None:
    residency = make(6, one=4, two=3)
    residency.expect(use("one", "two"))
    assert not residency.acquire(use("one", "two"))
    assert residency.num_held_pages == 0 and not residency.is_copying
    residency.check_integrity(use("one", "two"), [])
    assert residency.acquire(use("one"))
    assert not residency.acquire(use("two"))
    residency.check_integrity(use("one", "two"), use("one"))


def test_uses_are_hits_where_the_adapter_is_here_or_on_its_way() -> None:
    residency = make(one=2)
    assert (residency.num_hits, residency.num_misses) == (0, 0)
    for hits in range(3):
        start(residency, "one")
        assert (residency.num_hits, residency.num_misses) == (hits, 1)
        assert residency.num_requests("one") == hits + 1
    copy(residency)
    for _ in range(3):
        end(residency, "one")
    start(residency, "one")
    assert (residency.num_hits, residency.num_misses) == (3, 1) and not residency.is_copying
    assert residency.num_requests("none") == 0


def test_copies_go_on_where_they_ended_and_share_the_budget() -> None:
    residency = make(one=5, two=3)
    start(residency, "one")
    start(residency, "two")
    assert residency.num_pages_to_copy == 8
    assert sizes(copy(residency, 3)) == [("one", 0, 3)]
    assert residency.num_pages_to_copy == 5 and residency.num_copied_pages == 3
    assert sizes(copy(residency, 3)) == [("one", 3, 2), ("two", 0, 1)]
    assert not residency.is_being_copied("one") and residency.is_being_copied("two")
    assert copy(residency, 0) == []
    assert sizes(copy(residency, 3)) == [("two", 1, 2)]
    assert not residency.is_copying and residency.num_copied_pages == 8 and residency.num_pages_to_copy == 0
    assert residency.in_use() == {"one", "two"}
    assert residency.copy_counts("one") == CopyCounts(1, 5, 0.0)
    residency.check_integrity(use("one", "two"), use("one", "two"))


def test_copies_that_requests_wait_for_come_first() -> None:
    residency = make(ahead=2, first=2, second=2)
    residency.prefetch("ahead")
    for digest in ("first", "second", "second"):
        start(residency, digest)
    assert [order.digest for order in copy(residency)] == ["first", "second", "ahead"]


@pytest.mark.parametrize("beside", [False, True])
def test_rows_use_the_copies_of_their_step_unless_they_run_beside_it(beside: bool) -> None:
    residency = make(are_copies_beside_rows=beside, one=3)
    start(residency, "one")
    residency.begin_plan()
    residency.plan_copies(2)
    assert not residency.is_ready(use("one"))
    copies = residency.plan_copies(3)
    assert residency.is_ready(use("one")) is not beside
    residency.begin_plan()  # the step was interrupted
    assert not residency.is_ready(use("one")) and not residency.is_resident("one")
    residency.commit_copies(copies)
    assert residency.is_resident("one") and residency.is_ready(use("one")) is beside


def test_copies_into_pages_that_were_given_back_do_not_count() -> None:
    residency = make(one=3)
    start(residency, "one")
    copies = residency.plan_copies(3)
    end(residency, "one")
    residency.commit_copies(copies)
    assert residency.num_copied_pages == 0 and not residency.is_resident("one")
    taken = residency._pool.allocate(1)
    assert taken is not None
    start(residency, "one")
    residency.commit_copies(copies)  # it has other pages now
    assert residency.num_copied_pages == 0 and residency.num_pages_to_copy == 3


def test_an_idle_adapter_is_parked_and_comes_back_without_a_copy() -> None:
    residency = make(4, one=3, two=3)
    start(residency, "one")
    pages = [*residency.page_table("one")]
    copy(residency)
    end(residency, "one")
    assert residency.num_held_pages == 0 and residency.is_resident("one") and not residency.in_use()
    assert [*residency.owned_pages()] == [] and residency.take_changes() == {"one": True}
    start(residency, "one")
    assert residency.page_table("one") == pages and residency.is_ready(use("one")) and not residency.is_copying
    end(residency, "one")
    start(residency, "two")
    assert not residency.is_resident("one") and residency.take_changes() == {"one": False}
    residency.check_integrity(use("two"), use("two"))


def test_half_copied_pages_are_worthless() -> None:
    residency = make(4, one=3)
    start(residency, "one")
    copy(residency, 2)
    end(residency, "one")
    assert residency._pool.num_empty == 4 and not residency.is_resident("one") and residency.num_pages_to_copy == 0
    start(residency, "one")
    assert sizes(copy(residency, 2)) == [("one", 0, 2)]


def test_a_pin_keeps_an_adapter_until_it_ends() -> None:
    residency = make(4, one=3, two=2)
    residency.unpin("one")
    residency.unpin("unknown")
    assert residency.pin("one") and residency.is_pinned("one") and not residency.is_pinned("two")
    assert residency.num_pinned_pages == residency.num_kept_pages == 3 and not residency.is_warming
    assert not residency.pin("two") and not residency.is_pinned("two") and not residency.cancel_warming()
    copy(residency)
    assert residency.num_held_pages == 3 and residency.is_resident("one")
    residency.unpin("one")
    assert not residency.is_pinned("one") and residency.num_held_pages == residency.num_pinned_pages == 0
    assert residency.is_resident("one") and residency.pin("two")
    assert not residency.is_pinned("unknown")


def test_warming_ends_when_the_adapter_is_whole() -> None:
    residency = make(4, one=3)
    assert residency.warm("one") and residency.is_warming and residency.num_kept_pages == 3
    assert residency.to_be_copied() == {"one"}
    copy(residency, 2)
    assert residency.is_warming
    copy(residency, 1)
    assert not residency.is_warming and residency.num_kept_pages == residency.num_held_pages == 0
    assert residency.is_resident("one") and residency.warm("one")
    assert not residency.is_warming and residency.num_held_pages == 0 and residency.to_be_copied() == set()


def test_what_has_no_user_yet_gives_way() -> None:
    residency = make(8, ahead=2, warm=2, used=2)
    residency.prefetch("ahead")
    assert residency.warm("warm") and residency.warm("used")
    start(residency, "used")
    assert residency.num_held_pages == 6
    assert residency.cancel_prefetches() and not residency.cancel_prefetches()
    assert not residency.is_being_copied("ahead") and residency.num_held_pages == 4
    assert residency.cancel_warming() and not residency.cancel_warming()
    assert not residency.is_being_copied("warm") and residency.is_being_copied("used")
    assert residency.to_be_copied() == {"used"}
    residency.check_integrity(use("used"), use("used"))


def test_what_was_asked_for_is_no_longer_a_guess() -> None:
    residency = make(ahead=2)
    residency.prefetch("ahead")
    assert residency.warm("ahead")
    assert not residency.cancel_prefetches() and residency.is_being_copied("ahead")


def test_nothing_is_copied_ahead_that_is_here_or_has_no_room() -> None:
    residency = make(4, one=2, large=3)
    start(residency, "one")
    residency.prefetch("one")
    residency.prefetch("large")
    assert not residency.cancel_prefetches() and residency.num_held_pages == 2
    copy(residency)
    end(residency, "one")
    residency.prefetch("one")
    assert not residency.cancel_prefetches() and residency.num_held_pages == 0


def test_others_give_way_only_where_that_makes_room() -> None:
    residency = make(8, ahead=3, used=4, fits=4, large=5)
    start(residency, "used")
    residency.prefetch("ahead")
    assert not residency.pin("large") and residency.is_being_copied("ahead")
    assert residency.pin("fits") and not residency.is_being_copied("ahead")
    residency.check_integrity(use("used"), use("used"))


def test_nobody_gives_way_where_there_is_room() -> None:
    residency = make(8, ahead=3, wanted=5)
    residency.prefetch("ahead")
    assert residency.pin("wanted") and residency.is_being_copied("ahead")


def test_an_unloaded_adapter_goes_with_its_last_request() -> None:
    residency = make(one=2, two=2)
    start(residency, "one")
    assert residency.pin("two")
    residency.unregister("one")
    residency.unregister("two")
    residency.unregister("unknown")
    assert residency.take_gone() == ["two", "unknown"] and residency.take_gone() == []
    assert residency.is_known("one") and not residency.is_known("two") and residency.num_held_pages == 2
    copy(residency)
    end(residency, "one")
    assert residency.take_gone() == ["one"] and residency.take_changes() == {}
    assert residency._pool.num_empty == 16


def test_an_adapter_that_is_registered_again_stays() -> None:
    residency = make(one=2)
    start(residency, "one")
    residency.unregister("one")
    residency.register("one", 2)
    end(residency, "one")
    assert residency.is_known("one") and residency.take_gone() == []


def test_a_request_of_unknown_adapters_counts_nothing() -> None:
    residency = make(one=2)
    with pytest.raises(KeyError):
        residency.expect(use("one", "unknown"))
    assert residency.num_requests("one") == 0


def test_what_cannot_be_copied_is_given_up() -> None:
    residency = make(one=2, two=2)
    assert residency.pin("one") and residency.warm("two")
    assert residency.give_up("one") and not residency.give_up("one")
    assert not residency.give_up("two") and not residency.give_up("unknown")
    assert not residency.is_copying and residency.num_held_pages == 0
    assert not residency.is_pinned("one")


def test_seconds_are_divided_by_pages() -> None:
    residency = make(one=1, three=3)
    start(residency, "one", "three")
    copies = copy(residency)
    residency.note_copy_seconds(copies, 2.0)
    residency.note_copy_seconds(copies, 2.0)
    assert [residency.copy_counts(digest).seconds for digest in ("one", "three", "none")] == [1.0, 3.0, 0.0]
    assert residency.copy_seconds == 4.0


def test_an_unloaded_pin_keeps_no_pages_for_requests_that_wait() -> None:
    residency = make(one=2)
    residency.expect(use("one"))
    assert residency.pin("one")
    residency.unregister("one")
    assert residency.is_known("one") and residency.num_held_pages == 0 and not residency.is_copying
    residency.check_integrity(use("one"), [])
