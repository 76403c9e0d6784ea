"""BoundedMatcher: fast patterns match as with `re`, endless ones are stopped, and the timer is reset."""

import signal
import threading
import time

import pytest

from blora.adapters.peft.bounded_match import BoundedMatcher, PatternTooSlow

ENDLESS, TEXT = "([a-z]+)+!", "a" * 60


def test_what_ends_is_matched() -> None:
    matcher = BoundedMatcher()
    match = matcher.match(r".*\.(q|v)", "layers.0.q_proj")
    assert match is not None and match[1] == "q"
    assert matcher.fullmatch(r".*\.(q|v)", "layers.0.q_proj") is None


def test_the_time_is_of_all_matches_together_and_the_timer_is_off_afterwards() -> None:
    matcher, started = BoundedMatcher(0.1), time.process_time()
    before = signal.getsignal(signal.SIGVTALRM)
    for _ in range(10):
        with pytest.raises(PatternTooSlow):
            matcher.match(ENDLESS, TEXT)
    assert time.process_time() - started < 1
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0) and signal.getsignal(signal.SIGVTALRM) == before


def test_matches_that_end_give_no_time_back() -> None:
    matcher = BoundedMatcher(0.1)
    for _ in range(100):
        matcher.match(r".*\.(q|v)", "layers.0.q_proj")
    assert matcher._left < 0.1


def test_another_thread_matches_without_a_limit() -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(BoundedMatcher().match("a", "ab")))
    thread.start()
    thread.join()
    assert len(found) == 1 and found[0] is not None
