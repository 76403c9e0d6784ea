"""The waits before another engine: they grow while engines end again, and nobody waits for what came from outside."""

from blora.engine.ipc.death import Death
from blora.engine.ipc.restart_waits import RestartWaits

CRASH, KILL = Death("ended with status 1", True), Death("was ended by SIGKILL", False)


def test_waits_grow_with_each_crash_in_a_row() -> None:
    for has_computed, most in ((False, 10.0), (True, 2.0)):
        waits = RestartWaits()
        seen = [waits.after(CRASH, start=2.0, life=1.0, has_computed=has_computed) for _ in range(5)]
        assert seen == [0.0, 0.5, 2.0, most, most]


def test_starts_that_fail_count_too() -> None:
    waits = RestartWaits()
    assert waits.after(CRASH, start=2.0, life=1.0, has_computed=False) == 0.0
    assert [waits.after_failure() for _ in range(2)] == [0.5, 2.0]


def test_an_engine_that_lived_for_longer_than_it_took_to_start_begins_a_new_row() -> None:
    waits = RestartWaits()
    for _ in range(3):
        waits.after(CRASH, start=2.0, life=1.0, has_computed=True)
    assert waits.after(CRASH, start=2.0, life=2.0, has_computed=True) == 0.0


def test_a_cause_that_was_set_aside_ends_the_row() -> None:
    waits = RestartWaits()
    for _ in range(3):
        waits.after(CRASH, start=2.0, life=1.0, has_computed=True)
    waits.begin_anew()
    assert [waits.after(CRASH, start=2.0, life=1.0, has_computed=True) for _ in range(2)] == [0.0, 0.5]


def test_an_engine_that_worked_and_was_killed_is_replaced_at_once() -> None:
    waits = RestartWaits()
    assert [waits.after(KILL, start=2.0, life=1.0, has_computed=True) for _ in range(9)] == [0.0] * 9
    assert [waits.after(KILL, start=2.0, life=1.0, has_computed=False) for _ in range(2)] == [0.0, 0.5]
