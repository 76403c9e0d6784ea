"""Observations: what is counted of requests, and how many series strangers can make."""

from bisect import bisect_left

import pytest

from blora.engine.errors import AdapterNotFound, EngineUnavailable, InvalidRequest, QueueFull
from blora.engine.front_end.bounds import length_bounds
from blora.engine.front_end.observations import MOST_NAMES, OTHERS, UsageByName, reason_of
from blora.engine.front_end.output_processor import UserRequest
from blora.engine.metrics import Tally
from blora.scheduler import RequestOutputKind, SamplingParams


def user(num_tokens: int = 3) -> UserRequest:
    return UserRequest("1", None, [1] * num_tokens, SamplingParams(), None, RequestOutputKind.DELTA, [1], None)  # type: ignore[arg-type]


def test_a_value_on_a_bound_counts_below_it():
    tally = Tally([1, 5])
    for value in (0.5, 1, 1.1, 5, 6):
        tally.note(value)
    assert tally.counts == [2, 2, 1] and tally.num == 5 and tally.sum == pytest.approx(13.6)
    assert bisect_left(tally.bounds, 5) == 1


def test_bounds_of_lengths_end_at_the_longest():
    assert length_bounds(100) == [1, 2, 5, 10, 20, 50, 100] and length_bounds(64)[-1] == 50


def test_names_beyond_the_bound_count_together():
    by_name = UsageByName(most=2, reserved=["gold"])
    for name in ("a", "b", "c", "d", "gold", "a"):
        by_name.note(name, user())
    assert {name: usage.num_requests for name, usage in by_name.usage.items()} == {"a": 2, "b": 1, OTHERS: 2, "gold": 1}
    assert sum(usage.num_prompt_tokens for usage in by_name.usage.values()) == 6 * 3


def test_strangers_make_a_bounded_number_of_series():
    by_name = UsageByName()
    for number in range(10 * MOST_NAMES):
        by_name.note(f"tenant{number}", user())
    assert len(by_name.usage) == MOST_NAMES + 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InvalidRequest("prompt", "it is empty"), "invalid_request"),
        (AdapterNotFound("x"), "adapter_not_found"),
        (EngineUnavailable("it drains"), "engine_unavailable"),
        (QueueFull.of("deadline", "too late", 1.0), "queue_deadline"),
        (QueueFull("full"), "queue_work"),
    ],
)
def test_a_refusal_has_a_name(error: Exception, reason: str):
    assert reason_of(error) == reason
