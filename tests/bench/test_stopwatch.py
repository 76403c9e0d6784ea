"""Each watched function counts its own time only, and is restored at the end."""

import time
from collections.abc import Callable

import pytest

from blora.bench.profile_step import OTHER, TOTAL, middle_of
from blora.bench.stopwatch import Record, Stopwatch


class Engine:
    def __init__(self, pause: Callable[[float], object] = lambda _: None) -> None:
        self._pause = pause

    def step(self) -> int:
        self._pause(1.0)
        return self.forward() + 1

    def forward(self) -> int:
        self._pause(3.0)
        return 1


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time passes while it is called, and at no other time."""
    passed = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: sum(passed))
    return passed.append


def test_inner_calls_are_left_out(pause: Callable[[float], None]) -> None:
    engine = Engine(pause)
    with Stopwatch() as stopwatch:
        stopwatch.watch(engine, "step", "outer", starts_record=True)
        stopwatch.watch(engine, "forward", "inner")
        stopwatch.watch(engine, "missing", "never")
        assert [engine.step(), engine.step()] == [2, 2]
    assert vars(engine) == {"_pause": pause}, "the methods are the class's again"
    assert len(stopwatch.records) == 2
    for record in stopwatch.records:
        assert record.seconds == {"outer": 1.0, "inner": 3.0}


def test_one_in_another_and_a_call_that_fails() -> None:
    engine = Engine()
    engine.forward = lambda: 1 // 0  # type: ignore[method-assign]
    own = engine.forward
    with Stopwatch() as outer:
        outer.watch(engine, "forward", "forward", starts_record=True)
        with Stopwatch() as inner:
            inner.watch(engine, "forward", "forward", starts_record=True)
            with pytest.raises(ZeroDivisionError):
                engine.forward()
        with pytest.raises(ZeroDivisionError):
            engine.forward()
    assert engine.forward is own
    assert (len(outer.records), len(inner.records)) == (2, 1)


def test_the_middle_leaves_out_the_extremes_and_adds_up() -> None:
    starts = [0.0, 1.0, 3.0, 5.0, 7.0, 16.0]  # starts of steps of 1, 2, 2, 2 and 9 seconds
    records = [Record(start) for start in starts]
    for record in records:
        record.seconds["linear"] = 0.5
    middle = middle_of([records])
    assert middle == {"linear": 500.0, OTHER: 1500.0, TOTAL: 2000.0}
