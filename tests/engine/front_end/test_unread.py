"""Unread outputs: what waits for readers stays below a bound, at the cost of the one that is furthest behind."""

from dataclasses import dataclass

import pytest

from blora.engine.front_end import unread
from blora.engine.front_end.unread import furthest_behind


@dataclass(eq=False)
class User:
    num_unread_logprobs: int


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "MAX_UNREAD", 100)
    monkeypatch.setattr(unread, "MAX_ALWAYS_ALLOWED", 10)


def ended(*numbers: int, grown: int = 0) -> int | None:
    """Returns the number of the request that is ended."""
    users = [User(number) for number in numbers]
    user = furthest_behind([users[grown]], users)  # type: ignore[arg-type, list-item]
    return None if user is None else user.num_unread_logprobs


def test_the_request_with_the_most_is_ended() -> None:
    assert ended(30, 60, 11) == 60
    assert ended(99, 2, 3) == 99
    assert ended(50, 50) is None


def test_requests_with_little_are_not_looked_at() -> None:
    assert ended(10, 200) is None
    assert ended(11, 200) == 200
