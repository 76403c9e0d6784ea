"""The search finds a known capacity, tries again what is not sure, and ends."""

import random

import pytest

from blora.bench.load.search import Point, find_rate


def server(capacity: float, noise: float = 0.0, seed: int = 0):  # type: ignore[no-untyped-def]
    """Serves well up to its capacity; beyond it the share of good requests falls."""
    draw = random.Random(seed)

    def attempt(rate: float, _: int) -> tuple[int, int]:
        at = capacity * (1 + draw.uniform(-noise, noise))
        share = 0.999 if rate <= at else at / rate * 0.9
        total = 400
        return sum(draw.random() < share for _ in range(total)), total

    return attempt


@pytest.mark.parametrize("capacity", [0.3, 5.0, 47.0])
def test_a_known_capacity_is_found_within_the_tolerance(capacity: float) -> None:
    found = find_rate(server(capacity), 0.99, tolerance=0.05)
    assert found.rate is not None and capacity / 1.06 <= found.rate <= capacity
    assert all(point.is_met == (point.rate <= capacity) for point in found.points)


def test_a_noisy_server_is_tried_again() -> None:
    found = find_rate(server(10.0, noise=0.1), 0.99, most_runs=4)
    assert found.rate is not None and 8.0 <= found.rate <= 11.1
    assert max(point.runs for point in found.points) > 1


def test_a_server_that_never_meets_has_no_rate_and_the_search_ends() -> None:
    found = find_rate(lambda *_: (0, 100), 0.99)
    assert found.rate is None and 5 < len(found.points) < 20


def test_a_server_without_end_is_left_at_the_highest_rate() -> None:
    found = find_rate(lambda *_: (500, 500), 0.99, highest=100.0)
    assert found.rate == 64.0


def test_a_share_is_sure_when_its_interval_is_on_one_side() -> None:
    assert Point(1.0, 0.9, good=990, total=1000).is_sure
    assert Point(1.0, 0.9, good=800, total=1000).is_sure
    assert not Point(1.0, 0.9, good=9, total=10).is_sure
    low, high = Point(1.0, 0.9, good=90, total=100).interval
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-3)
    assert Point(1.0, 0.9).interval == (0.0, 1.0)
