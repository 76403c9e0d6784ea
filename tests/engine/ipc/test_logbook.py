"""The logbook: what one process writes, another one reads, also after the death of the writer."""

import os
import signal

import pytest

from blora.engine.ipc.death import death_of
from blora.engine.ipc.logbook import Activity, Entry, create_logbook, open_logbook, private_logbook

DIGEST = "ab" * 32


def test_what_is_noted_is_read() -> None:
    logbook = private_logbook(4)
    assert logbook.entry() == Entry(Activity.WAITING)
    logbook.note(Activity.EXECUTING, [3, 1 << 40])
    assert logbook.entry() == Entry(Activity.EXECUTING, (3, 1 << 40))
    logbook.note(Activity.REGISTERING, digest=DIGEST)
    assert logbook.entry() == Entry(Activity.REGISTERING, (), DIGEST)
    logbook.note(Activity.ADDING, [7])
    assert logbook.entry() == Entry(Activity.ADDING, (7,))
    logbook.rest()
    assert logbook.entry() == Entry(Activity.WAITING)


def test_a_grammar_that_is_compiled_is_named_alone() -> None:
    logbook = private_logbook(4)
    for request_id in (0, 9):
        logbook.note(Activity.EXECUTING, [1, 2])
        logbook.note_compiled(request_id)
        assert logbook.entry() == Entry(Activity.COMPILING, (request_id,))
        logbook.rest()
        assert logbook.entry() == Entry(Activity.COMPILING, (request_id,))
        logbook.note(Activity.EXECUTING, [1, 2])
        logbook.note_compiled(None)
        assert logbook.entry() == Entry(Activity.EXECUTING, (1, 2))


def test_an_entry_is_a_line_of_the_log() -> None:
    assert str(Entry(Activity.WAITING)) == "waiting"
    assert str(Entry(Activity.COPYING, (), "ab")) == "copying adapter ab"
    assert str(Entry(Activity.EXECUTING, (1, 2))) == "executing request 1, request 2"
    assert str(Entry(Activity.EXECUTING, tuple(range(10)))).endswith("request 7, 2 more")


def test_names_that_do_not_fit_are_cut() -> None:
    logbook = private_logbook(2)
    logbook.note(Activity.EXECUTING, [1, 2, 3], digest=DIGEST + "cd")
    assert logbook.entry() == Entry(Activity.EXECUTING, (1, 2), DIGEST)


def test_each_entry_is_a_sign_of_life() -> None:
    logbook = private_logbook(1)
    pulses = [logbook.pulse()]
    for _ in range(2):
        logbook.note(Activity.EXECUTING, [1], expected=2.5)
        pulses.append(logbook.pulse())
        logbook.rest()
        pulses.append(logbook.pulse())
    assert [pulse.num_beats for pulse in pulses] == [0, 1, 2, 3, 4]
    assert [pulse.expected for pulse in pulses] == [0, 2.5, 0, 2.5, 0]


def test_the_logbook_outlives_its_writer() -> None:
    logbook, descriptor = create_logbook(8)
    child = os.fork()
    if not child:
        open_logbook(descriptor).note(Activity.COPYING, digest=DIGEST)
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(descriptor)
    os.waitpid(child, 0)
    assert logbook.entry() == Entry(Activity.COPYING, (), DIGEST)


@pytest.mark.parametrize(
    ("status", "is_crash", "how"),
    [
        (1, True, "ended with status 1"),
        (0, True, "ended with status 0"),
        (-signal.SIGSEGV, True, "was ended by SIGSEGV"),
        (-signal.SIGABRT, True, "was ended by SIGABRT"),
        (-signal.SIGBUS, True, "was ended by SIGBUS"),
        (-signal.SIGKILL, False, "was ended by SIGKILL"),
        (-signal.SIGTERM, False, "was ended by SIGTERM"),
        (-40, True, "was ended by signal 40"),
    ],
)
def test_what_comes_from_outside_is_no_crash(status: int, is_crash: bool, how: str) -> None:
    entry = Entry(Activity.EXECUTING, (1,))
    death = death_of(status, entry)
    assert (death.is_crash, death.how, death.entry) == (is_crash, how, entry)
