"""One budget for KV blocks and adapters: the thing goes whose loss is expected to cost least, not the oldest one."""

import random
from functools import cache

import pytest

from blora.bench.simulation import Machine, Outcome, costs, simulate
from blora.bench.trace import TraceShape, make_trace
from blora.scheduler import DEFAULT_FAIRNESS, KeepRule, ReturnCosts
from blora.scheduler.eviction import Kind, Thing

RANKS = (4, 8, 16, 32, 64, 128)
PAGES = [max(1, 27 * rank // 16) for rank in random.Random(0).choices(RANKS, k=2000)]
MEMORY = sum(PAGES) // 50  # pages; room for 40 adapters


class LeastRecentlyUsed(KeepRule):
    """Evicts the thing that has been idle for longest."""

    def add(self, thing: Thing, kind: Kind, num_pages: int, is_awaited: bool = False) -> None:
        super().add(thing, kind, num_pages, is_awaited)
        self._clock += 1

    def _priority(self, group: object) -> float:
        return next(iter(group.idle.values()))  # type: ignore[attr-defined]


@cache
def serve(rule: type[KeepRule], alpha: float, prefix_len: int) -> Outcome:
    shape = TraceShape(
        adapters=len(PAGES),
        rate=8.0,
        seconds=200,
        alpha=alpha,
        prefix_len=prefix_len,
        input_len=(8, 256),
        output_len=(8, 64),
    )
    machine = Machine(num_pages=MEMORY, adapter_pages=PAGES)
    return simulate(make_trace(shape), machine, "fair", DEFAULT_FAIRNESS, rule(MEMORY, costs()))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_2000_adapters_with_memory_for_40_are_served_without_thrashing(alpha: float) -> None:
    """The simulation ends, so every request was served; an adapter is copied at most once for each request."""
    outcome = serve(KeepRule, alpha, 0)
    assert min(outcome.first_tokens) > 0
    assert outcome.copied_adapters <= len(outcome.adapters)


@pytest.mark.slow
def test_adapters_stay_where_nobody_asks_for_blocks_again() -> None:
    """A block costs more to bring back than a page of an adapter, but nothing if its prompt never comes again."""
    lru, rule = serve(LeastRecentlyUsed, 1.0, 0), serve(KeepRule, 1.0, 0)
    assert rule.copied_adapters < 0.95 * lru.copied_adapters


@pytest.mark.slow
def test_blocks_that_are_asked_for_stay_and_adapters_are_copied() -> None:
    lru, rule = serve(LeastRecentlyUsed, 1.0, 256), serve(KeepRule, 1.0, 256)
    assert rule.cached_tokens > 1.3 * lru.cached_tokens
    assert rule.copied_pages < 1.1 * lru.copied_pages


def test_what_comes_back_is_kept_before_what_never_did() -> None:
    rule = KeepRule(100, ReturnCosts(1.0, 1.0))
    rule.add(b"often", Kind.BLOCK, 1)
    for _ in range(3):
        rule.take(b"often")
        rule.add(b"often", Kind.BLOCK, 1)
    for index in range(50):
        rule.add(b"once %d" % index, Kind.BLOCK, 1)
    assert [rule.evict() for _ in range(50)] == [b"once %d" % index for index in range(50)]


def test_what_nobody_asks_for_goes_in_the_end_however_dear() -> None:
    rule = KeepRule(4, ReturnCosts(block=100.0, adapter=1.0))
    rule.add(b"dear", Kind.BLOCK, 1)
    gone: list[Thing] = []
    while b"dear" not in gone:
        rule.add(f"adapter {len(gone)}", Kind.ADAPTER, 1)
        gone.append(rule.evict())
        rule.miss(gone[-1])  # the adapter is copied again at once, so it was wanted
    assert 40 < len(gone) < 150


def test_what_was_wanted_again_after_it_went_is_kept_longer() -> None:
    """Once it is known that adapters used in turn come back and blocks do not, the blocks go first, however dear."""
    rule = KeepRule(30, ReturnCosts(block=10.0, adapter=1.0))
    here: set[Thing] = set()
    copied: list[int] = []
    for index in range(600):
        adapter = f"adapter {index % 10}"
        if adapter in here:
            rule.take(adapter)
        else:
            rule.miss(adapter)
            copied.append(index)
        rule.add(adapter, Kind.ADAPTER, 1)
        here.add(adapter)
        rule.add(b"block %d" % index, Kind.BLOCK, 1)
        while rule.num_idle_pages > 20:
            here.discard(rule.evict())
    assert sum(index < 200 for index in copied) > 20 > sum(index >= 400 for index in copied)
