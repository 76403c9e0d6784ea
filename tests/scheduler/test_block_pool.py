"""The pool of pages: each is in one state, and what was cached or parked is found until it is evicted."""

import pytest

from blora.scheduler import BlockPool


def check(pool: BlockPool, *owned: int, adapters: tuple[str, ...] = ()) -> None:
    pool.check_integrity(owned, set(adapters))


def take(pool: BlockPool, num_pages: int) -> list[int]:
    taken = pool.allocate(num_pages)
    assert taken is not None
    return taken


def cached(pool: BlockPool, *keys: bytes) -> list[int]:
    """The pages of idle cached blocks, the first of which is evicted first."""
    pages = take(pool, len(keys))
    for page, key in zip(pages, keys, strict=True):
        pool.publish(page, key)
    pool.release(pages)
    return pages


def test_pages_are_given_out_in_order_and_never_twice() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [0, 1, 2] and pool.num_empty == pool.num_free == 1
    assert pool.allocate(2) is None and pool.allocate(1) == [3] and pool.allocate(0) == []
    check(pool, 0, 1, 2, 3)


def test_references_are_counted() -> None:
    pool = BlockPool(2)
    (page,) = take(pool, 1)
    assert pool.is_held(page) and not pool.is_shared(page) and not pool.is_held(1)
    pool.share([page])
    assert pool.is_held(page) and pool.is_shared(page)
    check(pool, page, page)
    pool.release([page])
    assert pool.is_held(page) and not pool.is_shared(page) and pool.num_free == 1
    pool.release([page])
    assert not pool.is_held(page) and pool.num_free == pool.num_empty == 2
    check(pool)
    with pytest.raises(RuntimeError, match="more often than it was taken"):
        pool.release([page])
    with pytest.raises(RuntimeError, match="cannot be shared"):
        pool.share([page])


def test_a_cached_block_is_found_until_it_is_evicted() -> None:
    pool = BlockPool(3)
    first, second = cached(pool, b"first", b"second")
    assert (pool.find(b"first"), pool.find(b"second"), pool.find(b"third")) == (first, second, None)
    assert pool.num_empty == 1 and pool.num_free == 3
    assert pool.allocate(1) == [2] and pool.num_evicted_blocks == 0  # an empty page goes first
    assert pool.allocate(1) == [first] and pool.num_evicted_blocks == 1
    assert pool.find(b"first") is None and pool.find(b"second") == second
    pool.share([second])
    assert pool.allocate(1) is None
    check(pool, first, second, 2)


def test_a_key_keeps_its_page_and_a_page_its_key() -> None:
    pool = BlockPool(3)
    one, other = take(pool, 2)
    pool.publish(one, b"key")
    pool.publish(other, b"key")
    pool.publish(one, b"another")
    assert pool.find(b"key") == one and pool.find(b"another") is None
    check(pool, one, other)


def test_what_is_retracted_is_found_no_more_and_stays_in_use() -> None:
    pool = BlockPool(3)
    pages = take(pool, 2)
    pool.publish(pages[0], b"wrong")
    pool.retract(pages)
    assert pool.find(b"wrong") is None and pool.num_free == 1
    check(pool, *pages)
    pool.release(pages)
    assert pool.num_empty == 3
    check(pool)
    (again,) = cached(pool, b"wrong again")
    pool.share([again])
    pool.retract([again])
    check(pool, again)
    assert not pool._rule._known


@pytest.mark.parametrize("also_used", [False, True])
def test_forgetting_empties_idle_blocks(also_used: bool) -> None:
    pool = BlockPool(3)
    cached(pool, b"idle")
    (used,) = take(pool, 1)
    pool.publish(used, b"used")
    assert pool.forget_blocks(also_used) is also_used
    assert pool.num_empty == 2 and pool.find(b"idle") is None
    assert pool.find(b"used") == (None if also_used else used)
    check(pool, used)


def test_a_parked_adapter_comes_back_whole_or_not_at_all() -> None:
    pool = BlockPool(4)
    pages = take(pool, 2)
    check(pool, *pages, adapters=("one",))
    pool.park("one", pages)
    assert pool.is_parked("one") and not pool.is_parked("two")
    assert pool.num_empty == 2 and pool.num_free == 4
    check(pool)
    assert pool.unpark("two") is None and pool.unpark("one") == pages and pool.unpark("one") is None
    assert pool.num_free == 2 and not pool.is_parked("one")
    check(pool, *pages, adapters=("one",))
    pool.park("one", pages)
    rest = take(pool, 3)
    assert pool.take_evicted_adapters() == {"one"} and pool.take_evicted_adapters() == set()
    assert pool.unpark("one") is None and pool.num_evicted_adapters == 1 and pool.num_empty == 1
    check(pool, *rest)


def test_a_discarded_adapter_leaves_nothing() -> None:
    pool = BlockPool(4)
    pool.park("parked", take(pool, 2))
    pool.discard("parked")
    pool.discard("unknown")
    assert pool.num_empty == 4 and not pool.is_parked("parked")
    check(pool)
    pool.park("evicted", take(pool, 2))
    pages = take(pool, 4)
    pool.discard("evicted")
    assert pool.take_evicted_adapters() == set() and not pool._rule._known
    check(pool, *pages)


def test_what_is_missed_and_copied_again_counts_as_wanted() -> None:
    pool = BlockPool(2)
    pool.park("one", take(pool, 1))
    pool.release(take(pool, 2))
    pool.note_miss("one")
    (page,) = take(pool, 1)
    check(pool, page)
    pool.note_copied("one")
    check(pool, page, adapters=("one",))
    assert pool._rule._known["one"].num_returns == 1 and not pool._rule._known["one"].is_missed


def test_blocks_that_are_awaited_go_last() -> None:
    pool = BlockPool(2)
    pages = take(pool, 2)
    for page, key in zip(pages, (b"awaited", b"idle"), strict=True):
        pool.publish(page, key)
    pool.release(pages[:1], is_awaited=True)
    pool.release(pages[1:])
    assert pool.allocate(1) == pages[1:] and pool.find(b"awaited") == pages[0]
