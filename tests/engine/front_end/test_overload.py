"""Under overload the answers that come in time are as many as ever: simulated, with the real admission and scheduler.

`make chaos` tries the same on a real server.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import pytest
from overload_world import DROPPED, EXPIRED, OK, REFUSED, Asked, OverloadWorld, arrivals

from blora.scheduler import StepCosts

CAPACITY = 30.0  # requests a second
WARM = 3.0  # seconds at half of the capacity, from which the pace is known
SECONDS = 6.0


def serve(rate: float, world: dict[str, Any] | None = None, **fields: Any) -> list[Asked]:
    """Returns the requests that arrive at a rate after the warm-up."""
    warm = list(arrivals(CAPACITY / 2, WARM, seed=1, **fields))
    asked = list(arrivals(rate, SECONDS, seed=2, start=WARM, **fields))
    OverloadWorld(**world or {}).run(warm + asked)
    return asked


def num_good(asked: list[Asked], longest_wait: float) -> int:
    return sum(one.status == OK and one.wait <= longest_wait for one in asked)


CASES: dict[str, tuple[float, dict[str, Any], dict[str, Any]]] = {  # longest wait, fields of requests, options
    "deadlines and answers of unknown length": (9.0, {"patience": 3.0, "max_tokens": 64, "answer": (8, 56)}, {}),
    "tight deadlines": (9.0, {"patience": 0.6}, {}),
    "the server's own limit": (1.0, {}, {"max_seconds": 1.0}),
    "few seats": (1.0, {"first_token_patience": 1.0}, {"num_seats": 8}),
    "a pace to keep": (1.0, {}, {"max_seconds": 0.8, "target_itl": 0.03, "num_batched_tokens": 2048}),
    "little memory": (1.0, {"first_token_patience": 1.0}, {"num_pages": 100}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_goodput_stays_at_its_peak(case: str) -> None:
    longest_wait, fields, options = CASES[case]
    good = {factor: num_good(serve(factor * CAPACITY, options, **fields), longest_wait) for factor in (0.9, 2, 5, 10)}
    assert good[2] >= 0.95 * good[0.9] and good[5] >= 0.9 * good[0.9] and good[10] >= 0.8 * good[0.9], good


def test_goodput_stays_at_its_peak_with_long_prompts() -> None:
    fields: dict[str, Any] = {"patience": 6.0, "prompt": (20, 1000), "answer": (1, 20)}
    good = {factor: num_good(serve(factor * CAPACITY / 4, **fields), 9.0) for factor in (0.9, 5)}
    assert good[5] >= 0.9 * good[0.9]


def test_without_admission_goodput_collapses() -> None:
    """So that the tests above test something."""
    assert num_good(serve(5 * CAPACITY), 0.5) < 0.3 * num_good(serve(0.8 * CAPACITY), 0.5)


def test_nearly_all_that_is_accepted_is_in_time() -> None:
    statuses = Counter(one.status for one in serve(5 * CAPACITY, patience=2.0))
    assert statuses[EXPIRED] < 0.03 * statuses[OK] and statuses[REFUSED] > statuses[OK]


def test_nobody_is_refused_below_capacity() -> None:
    statuses = Counter(one.status for one in serve(0.7 * CAPACITY, {"max_seconds": 2.0}, patience=4.0))
    assert set(statuses) == {OK}


def test_the_wait_is_normal_two_seconds_after_a_spike() -> None:
    calm, spike = 0.7 * CAPACITY, 10.0
    before = list(arrivals(calm, 6, seed=1))
    during = list(arrivals(5 * CAPACITY, spike, seed=2, start=6))
    after = list(arrivals(calm, 6, seed=3, start=6 + spike))
    for one in before + during + after:
        one.first_token_patience = 0.5
    OverloadWorld().run(before + during + after)
    late = [one for one in after if one.arrival > 8 + spike]
    assert Counter(one.status for one in late)[OK] > 0.99 * len(late)
    assert max(one.wait for one in late if one.status == OK) < 1.5 * max(one.wait for one in before if one.status == OK)


def test_a_flood_does_not_keep_others_out() -> None:
    """One tenant sends ten times the capacity, four send a seventh of their share each."""
    options = {"max_seconds": 2.0, "max_tokens": 4000}
    flood = list(arrivals(10 * CAPACITY, SECONDS, seed=1, tenant="flood"))
    calm = [list(arrivals(CAPACITY / 7, SECONDS, seed=seed, tenant=f"calm {seed}")) for seed in (2, 3, 4, 5)]
    OverloadWorld(**options).run(flood + [one for some in calm for one in some])
    for some in calm:
        settled = [one for one in some if one.arrival > 2]
        assert Counter(one.status for one in settled)[OK] >= 0.95 * len(settled)
        assert mean(one.wait for one in settled if one.status == OK) < 0.7
    statuses = Counter(one.status for one in flood)
    assert statuses[REFUSED] > 0.8 * len(flood) and statuses[OK] > 0.2 * CAPACITY * SECONDS


DEFAULT_MODEL = StepCosts(10e-3, 0.55e-3, 5.6e-4, 0.0, 0.0)  # about as the default model takes on two cores
NEIGHBOURS = ("a", "b", "c", "d")


def beside_a_flood(times: float, seconds: float = 25.0) -> tuple[list[Asked], OverloadWorld]:
    """Gate E4 of docs/reliability.md: four tenants with a fifth of 80 % of the capacity each, and one that sends so
    many times as many requests, of 400 tokens. Returns the requests of the four."""
    share, answer = 0.8 * 12.0 / 5, (16, 48)
    others = [
        one
        for seed, tenant in enumerate(NEIGHBOURS)
        for one in arrivals(share, seconds, seed=seed, tenant=tenant, prompt=(16, 112), answer=answer)
    ]
    flood: Sequence[Asked] = ()
    if times:
        flood = list(arrivals(times * share, seconds, seed=9, tenant="flood", prompt=(300, 500), answer=answer))
    world = OverloadWorld(max_seconds=0.5, num_seats=256, num_batched_tokens=2048, num_pages=4000, costs=DEFAULT_MODEL)
    world.run([*others, *flood])
    return [one for one in others if one.arrival > 3.0], world


def late(asked: Sequence[Asked], share: float) -> float:
    waits = sorted(one.wait for one in asked if one.status == OK)
    return waits[int(share * len(waits))]


@pytest.mark.parametrize("times", [1, 20])
def test_the_others_keep_their_goodput_beside_a_flood_of_long_prompts(times: float) -> None:
    calm, _ = beside_a_flood(0)
    beside, world = beside_a_flood(times)
    assert num_good(beside, 1.0) >= 0.95 * num_good(calm, 1.0)
    assert late(beside, 0.95) <= 2 * late(calm, 0.95)
    assert world.num_steps > 500


ADAPTERS = ("", "a0", "a1", "a2", "a3")


def test_first_tokens_come_in_time_where_adapters_overtake_each_other() -> None:
    """Gate E1 at twice the capacity: adapters share what their tenant gets, so a request that has others of its own
    adapter before it is overtaken by those of other adapters that come later."""
    draw, capacity = random.Random(0), 13.0
    fields: dict[str, Any] = {"prompt": (16, 112), "answer": (16, 48)}
    warm = arrivals(0.9 * capacity, 15.0, seed=1, **fields)
    asked = list(arrivals(2 * capacity, 30.0, seed=2, start=15.0, **fields))
    options = {"num_seats": 256, "num_batched_tokens": 2048, "num_pages": 2000, "costs": DEFAULT_MODEL}
    world = OverloadWorld(max_seconds=0.5, adapters=ADAPTERS[1:], **options)
    for one in (everything := [*warm, *asked]):
        one.adapter = draw.choice(ADAPTERS)
    world.run(everything)
    statuses = Counter(one.status for one in asked)
    assert late(asked, 0.99) < 0.9
    assert statuses[DROPPED] < 0.005 * (statuses[REFUSED] + statuses[DROPPED])
    assert num_good(asked, 1.0) > 0.9 * 30.0 * capacity


def test_urgent_requests_do_not_wait_for_the_others() -> None:
    flood = list(arrivals(5 * CAPACITY, SECONDS, seed=1, priority=1))
    urgent = list(arrivals(CAPACITY / 4, SECONDS, seed=2, first_token_patience=1.5))
    OverloadWorld(max_seconds=5.0).run(flood + urgent)
    assert Counter(one.status for one in urgent)[OK] >= 0.95 * len(urgent)


def test_who_waits_as_told_is_accepted() -> None:
    flood = list(arrivals(3 * CAPACITY, 3, seed=1))
    OverloadWorld(max_seconds=0.5).run(flood)
    last = max((one for one in flood if one.retry_after is not None), key=lambda one: one.arrival)
    again = replace(last, arrival=last.arrival + (last.retry_after or 0.0), status="")
    OverloadWorld(max_seconds=0.5).run([*arrivals(3 * CAPACITY, 3, seed=1), again])
    assert again.status == OK


def test_a_full_queue_refuses() -> None:
    asked = list(arrivals(20 * CAPACITY, 1, seed=1))
    OverloadWorld(max_requests=50, max_tokens=1000).run(asked)
    statuses = Counter(one.status for one in asked)
    assert set(statuses) == {OK, REFUSED} and statuses[REFUSED] > 0.5 * len(asked)
