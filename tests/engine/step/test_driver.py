"""The driver: where work runs, that one thread alone computes steps, and who learns of a failure."""

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from blora.engine import EngineUnavailable
from blora.engine.step.driver import Driver
from blora.engine.step.engine_thread import EngineThread

HERE = threading.get_ident
LONG = 100  # seconds, which nothing here takes


class Counter:
    """An engine whose steps count, and that notices if two threads work on it."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.threads: list[int] = []
        self.failure: Exception | None = None
        self.is_stepping = False
        self.on_step: Callable[[], None] = lambda: None
        self.driver = Driver(self._step)

    def _step(self) -> None:
        assert not self.is_stepping
        self.is_stepping = True
        self.threads.append(HERE())
        self.num_steps += 1
        self.on_step()
        self.is_stepping = False
        if self.failure is not None:
            raise self.failure

    def count_to(self, num_steps: int) -> int:
        """Waits for so many steps more."""
        goal = self.num_steps + num_steps
        return self.driver.until(lambda: self.num_steps if self.num_steps >= goal else None)


@pytest.fixture
def counter() -> Iterator[Counter]:
    made = Counter()
    yield made
    made.driver.close(lambda: None)


def in_another_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(LONG)


def test_one_thread_drives_by_itself(counter: Counter) -> None:
    assert counter.count_to(3) == 3
    assert counter.driver.run(HERE) == HERE()
    assert set(counter.threads) == {HERE()}


def test_a_second_thread_starts_a_third_that_works_for_both(counter: Counter) -> None:
    other, its = in_another_thread(lambda: (HERE(), counter.driver.run(HERE)))
    assert its not in (HERE(), other)
    assert counter.driver.run(HERE) == its
    counter.count_to(3)
    assert set(counter.threads) == {its}


def test_the_first_thread_gives_the_engine_away_in_the_middle(counter: Counter) -> None:
    started, seen = threading.Event(), []

    def call() -> None:
        started.wait(LONG)
        seen.append(counter.driver.run(HERE))

    thread = threading.Thread(target=call)
    thread.start()
    counter.on_step = started.set
    counter.driver.until(lambda: seen or None)
    assert counter.threads[0] == HERE()
    assert set(counter.threads[1:]) - {HERE()} <= set(seen)
    thread.join()


def test_many_threads_wait_for_steps_together(counter: Counter) -> None:
    barrier = threading.Barrier(8)

    def wait(num_steps: int) -> bool:
        barrier.wait(LONG)
        return counter.count_to(num_steps) >= num_steps

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(wait, range(50, 58), timeout=LONG))
    assert len(set(counter.threads)) == 1


def test_work_may_have_more_work_done(counter: Counter) -> None:
    for call in (lambda work: work(), in_another_thread):
        assert call(lambda: counter.driver.run(lambda: (counter.count_to(2), counter.driver.run(HERE))))


def test_an_error_of_work_is_its_callers_alone(counter: Counter) -> None:
    in_another_thread(lambda: counter.driver.run(HERE))
    steps = threading.Event()
    counter.on_step = steps.set
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(counter.count_to, 1000)
        steps.wait(LONG)
        with pytest.raises(ZeroDivisionError):
            counter.driver.run(lambda: 1 / 0)
        assert waiting.result(LONG) == 1000


def test_an_error_of_a_step_reaches_all_who_wait(counter: Counter) -> None:
    asked = [threading.Event() for _ in range(3)]

    def wait(event: threading.Event) -> None:
        counter.driver.until(event.set)  # type: ignore[func-returns-value]

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(wait, event) for event in asked]
        assert all(event.wait(LONG) for event in asked)
        counter.failure = ValueError("the step")
        for call in waiting:
            with pytest.raises(ValueError, match="the step"):
                call.result(LONG)
    counter.failure = None
    assert counter.count_to(1)


def test_notes_are_done_before_other_work_and_between_steps(counter: Counter) -> None:
    done: list[int] = []
    for call in (lambda work: work(), in_another_thread):
        counter.driver.notes.append(lambda: done.append(HERE()))
        assert call(lambda: counter.driver.run(lambda: done[-1] == HERE()))
    counter.on_step = lambda: counter.driver.notes.append(lambda: done.append(counter.num_steps))
    counter.driver.until(lambda: done if done[-1] == 5 else None)


def test_a_note_that_fails_is_logged(counter: Counter, caplog: pytest.LogCaptureFixture) -> None:
    counter.driver.notes.append(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert counter.driver.run(HERE)
    assert "ZeroDivisionError" in caplog.text


def test_after_close_nobody_gets_an_answer(counter: Counter) -> None:
    ended: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        asked = threading.Event()
        waiting = pool.submit(counter.driver.until, asked.set)
        asked.wait(LONG)
        for _ in range(2):
            counter.driver.close(lambda: ended.append(1))
        with pytest.raises(EngineUnavailable):
            waiting.result(LONG)
        for call in (lambda work: work(), in_another_thread):
            with pytest.raises(EngineUnavailable):
                call(lambda: counter.driver.run(HERE))
    assert ended == [1]
    assert not engine_threads()


def engine_threads() -> list[EngineThread]:
    """Those that do not end by themselves."""
    threads = [thread for thread in threading.enumerate() if isinstance(thread, EngineThread)]
    for thread in threads:
        thread.join(0.2)
    return [thread for thread in threads if thread.is_alive()]


def test_close_without_another_thread() -> None:
    alone = Counter()
    alone.driver.close(lambda: None)
    with pytest.raises(EngineUnavailable):
        alone.count_to(1)


def test_what_nobody_uses_is_collected_and_its_thread_ends() -> None:
    lost = Counter()
    in_another_thread(partial(lost.count_to, 1))
    assert engine_threads()
    reference = weakref.ref(lost)
    del lost
    gc.collect()
    assert reference() is None
    assert not engine_threads()


INTERRUPTED = """
import os, signal, threading
from blora.engine.step.driver import Driver

num_steps = 0

def step():
    global num_steps
    num_steps += 1
    if num_steps == 5:
        os.kill(os.getpid(), signal.SIGINT)

driver = Driver(step)
other = threading.Thread(target=driver.run, args=(lambda: None,))
other.start()
other.join()
try:
    driver.until(lambda: None)
except KeyboardInterrupt:
    assert driver.run(lambda: num_steps) >= 5  # the others go on
    print("interrupted")
"""
AT_EXIT = """
import threading, time
from blora.engine.step.driver import Driver

is_stepping = threading.Event()

def step():
    is_stepping.set()
    time.sleep(0.01)

driver = Driver(step)
threading.Thread(target=driver.until, args=(lambda: None,), daemon=True).start()
is_stepping.wait()
print("exit")
"""


@pytest.mark.parametrize(("program", "said"), [(INTERRUPTED, "interrupted\n"), (AT_EXIT, "exit\n")])
def test_interrupt_and_exit(program: str, said: str) -> None:
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG)
    assert (ended.returncode, ended.stdout) == (0, said), ended.stderr
