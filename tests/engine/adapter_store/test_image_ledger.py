"""ImageLedger: used images stay, idle ones fit into the limit, and the least recently used one goes first."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from blora.engine.adapter_store.image_ledger import ImageLedger
from blora.engine.adapter_store.source import Source


@given(st.integers(0, 8), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=80))
def test_what_is_used_stays_and_what_is_idle_fits(max_bytes: int, operations: list[tuple[int, int]]) -> None:
    """Adapter n has n bytes."""
    ledger, users, images, pinned = ImageLedger(max_bytes), Counter[str](), set[str](), {"5"}
    for operation, number in operations:
        digest = str(number)
        if operation == 0:
            ledger.add(digest, number, Source(digest, digest))
            images.add(digest)
        elif operation == 1 and digest in ledger.digests():
            users[digest] += 1
            ledger.use(digest)
        elif operation == 2 and users[digest]:
            users[digest] -= 1
            ledger.release(digest)
        elif operation == 3 and not users[digest]:
            ledger.forget(digest)
            images.discard(digest)
        dropped = ledger.take_excess(pinned.__contains__)
        images -= set(dropped)
        assert not any(users[gone] for gone in dropped) and not pinned & set(dropped)
        ledger.check_integrity(users.elements(), images)
        droppable = [digest for digest in images if not users[digest] and digest not in pinned and digest != "0"]
        assert ledger.num_bytes <= max_bytes or not droppable


def test_the_least_recently_used_goes_first() -> None:
    ledger = ImageLedger(3)
    for digest in "abc":
        ledger.add(digest, 1, Source(digest, digest))
    ledger.use("a")
    ledger.release("a")
    ledger.add("d", 1, Source("d", "d"))
    assert ledger.take_excess(lambda _: False) == ["b"]
    assert (ledger.num_uses, ledger.num_hits, ledger.num_bytes) == (1, 1, 3)


def test_what_was_overwritten_stays() -> None:
    ledger = ImageLedger(0)
    for digest in "ab":
        ledger.add(digest, 1, Source("mine", "folder"))
    assert ledger.take_excess(lambda _: False) == ["b"] and "a" in ledger
    ledger.forget("b")
    ledger.add("a", 1, Source("mine", "folder"))
    assert ledger.take_excess(lambda _: False) == ["a"]
