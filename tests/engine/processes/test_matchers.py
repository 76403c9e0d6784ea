"""The thread that makes matchers: what it makes, what it leaves when its request or its process ends."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from blora.engine.processes.matchers import Matchers

LIMIT = 30.0  # seconds: only a failure takes so long


class Grammars:
    """Makes matchers, each once it may."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def matcher(self, order: Any, token_ids: Any) -> Any:
        self.begun.append(order)
        self.has_begun.set()
        assert self.may_end.wait(LIMIT)
        if order == "bad":
            raise ValueError(order)
        return (order, token_ids)


class Bell:
    def __init__(self) -> None:
        self.num_rung, self.has_rung = 0, threading.Semaphore(0)

    def __call__(self) -> None:
        self.num_rung += 1
        self.has_rung.release()


def message(request_id: int, grammar: str, tenant: str = "") -> Any:
    return SimpleNamespace(request_id=request_id, grammar=grammar, tenant=tenant, told_token_ids=[request_id])


def test_matchers_come_in_order_and_an_error_is_its_requests_own() -> None:
    grammars, bell = Grammars(), Bell()
    matchers = Matchers(grammars, bell)  # type: ignore[arg-type]
    for request_id, grammar in enumerate(("a", "bad", "b")):
        matchers.begin(message(request_id, grammar))
    assert matchers.take() == []
    grammars.may_end.set()
    assert all(bell.has_rung.acquire(timeout=LIMIT) for _ in range(3))
    (_, first), (_, second), (_, third) = matchers.take()
    assert (first.result(), third.result()) == (("a", [0]), ("b", [2]))
    with pytest.raises(ValueError, match="bad"):
        second.result()
    assert matchers.take() == []
    matchers.close()


def test_what_was_not_begun_is_left_when_its_request_or_the_process_ends() -> None:
    grammars, bell = Grammars(), Bell()
    matchers = Matchers(grammars, bell)  # type: ignore[arg-type]
    for request_id, grammar in enumerate("abc"):
        matchers.begin(message(request_id, grammar))
    assert grammars.has_begun.wait(LIMIT)
    matchers.forget([1, 99])
    assert bell.has_rung.acquire(timeout=LIMIT)
    matchers.close()
    num_rung = bell.num_rung
    grammars.may_end.set()
    assert matchers._thread is not None
    matchers._thread.shutdown(wait=True)
    assert (grammars.begun, bell.num_rung) == (["a"], num_rung)


def test_tenants_take_turns() -> None:
    grammars, bell = Grammars(), Bell()
    matchers = Matchers(grammars, bell)  # type: ignore[arg-type]
    matchers.begin(message(0, "a0", "a"))
    assert grammars.has_begun.wait(LIMIT)
    for request_id, name in enumerate(("a1", "a2", "a3", "b0", "b1", "c0"), 1):
        matchers.begin(message(request_id, name, name[0]))
    matchers.forget([1])
    grammars.may_end.set()
    assert all(bell.has_rung.acquire(timeout=LIMIT) for _ in range(7))
    assert grammars.begun == ["a0", "b0", "c0", "a2", "b1", "a3"]
    matchers.close()


def test_what_it_is_at_is_noted() -> None:
    grammars, bell, noted = Grammars(), Bell(), list[int | None]()
    matchers = Matchers(grammars, bell, noted.append)  # type: ignore[arg-type]
    matchers.begin(message(3, "a"))
    assert grammars.has_begun.wait(LIMIT)
    assert noted == [3]
    matchers.begin(message(4, "bad"))
    grammars.may_end.set()
    assert all(bell.has_rung.acquire(timeout=LIMIT) for _ in range(2))
    assert noted == [3, None, 4, None]
    matchers.close()
