"""Whom crashes accuse, who is computed alone, and who is set aside."""

from collections.abc import Sequence

from blora.engine.front_end.suspects import MAX_ADAPTERS, NUM_ALONE, Suspects, Verdict
from blora.engine.ipc.death import Death
from blora.engine.ipc.logbook import Activity, Entry

NOBODY = Verdict({}, {})
MANY = 1000  # tokens


def crash(*request_ids: int, digest: str | None = None, is_crash: bool = True) -> Death:
    activity = Activity.EXECUTING if request_ids else Activity.REGISTERING
    return Death("was ended by SIGSEGV", is_crash, Entry(activity, request_ids, digest))


def base(*request_ids: int) -> dict[int, Sequence[str]]:
    return dict.fromkeys(request_ids, ())


def alone(suspects: Suspects, *request_ids: int) -> list[int]:
    return [suspects.num_alone(request_id, (), MANY) for request_id in request_ids]


def test_two_crashes_make_suspects_and_the_one_that_crashes_alone_is_set_aside() -> None:
    suspects, running = Suspects(), base(1, 2, 3)
    assert suspects.judge(crash(1, 2), running) == NOBODY
    assert alone(suspects, 1, 2, 3) == [0, 0, 0]
    assert suspects.judge(crash(2, 3), running) == NOBODY
    assert alone(suspects, 1, 2, 3) == [0, NUM_ALONE, 0]
    verdict = suspects.judge(crash(2), running)
    assert list(verdict.requests) == [2] and not verdict.adapters
    assert "crashed 3 times over this request" in verdict.requests[2] and "SIGSEGV" in verdict.requests[2]
    assert (suspects.num_crashes, suspects.num_requests_set_aside) == (3, 1)


def test_a_suspect_that_is_accused_in_company_again_stays_alone() -> None:
    suspects, running = Suspects(), base(1, 2)
    for _ in range(3):
        assert suspects.judge(crash(1, 2), running) == NOBODY
    assert alone(suspects, 1, 2) == [MANY, MANY]


def test_what_is_ended_from_outside_accuses_nothing() -> None:
    suspects = Suspects()
    for _ in range(5):
        assert suspects.judge(crash(1, is_crash=False), base(1)) == NOBODY
    assert alone(suspects, 1) == [0] and suspects.num_crashes == 0


def test_one_request_alone_in_the_engine_needs_two_crashes() -> None:
    suspects = Suspects()
    assert suspects.judge(crash(1), base(1)) == NOBODY
    assert list(suspects.judge(crash(1), base(1)).requests) == [1]


def test_an_adapter_whose_registration_crashes_twice_is_set_aside() -> None:
    suspects = Suspects()
    assert suspects.judge(crash(digest="a"), {}) == NOBODY
    assert suspects.judge(crash(digest="b"), {}) == NOBODY
    assert list(suspects.judge(crash(digest="a"), {}).adapters) == ["a"]
    assert suspects.num_adapters_set_aside == 1


def test_an_adapter_is_set_aside_with_the_second_request_for_it() -> None:
    suspects, running = Suspects(), {1: ("a", "b"), 2: ("c", "a"), 3: ("b",), 4: ()}
    for _ in range(2):
        first = suspects.judge(crash(1), running)
    assert list(first.requests) == [1] and not first.adapters
    assert [suspects.num_alone(0, [digest], MANY) for digest in "abc"] == [NUM_ALONE, NUM_ALONE, 0]
    for _ in range(2):
        second = suspects.judge(crash(2), running)
    assert list(second.requests) == [2] and list(second.adapters) == ["a"]


def test_what_has_ended_is_forgotten() -> None:
    suspects = Suspects()
    for _ in range(2):
        suspects.judge(crash(1, 2), base(1, 2))
        suspects.judge(crash(digest="a"), {})
    suspects.forget([1])
    suspects.forget_adapters(["a"])
    assert alone(suspects, 1, 2) == [0, NUM_ALONE]
    assert suspects.judge(crash(3), base(1)) == NOBODY  # 3 has ended before the engine did
    assert alone(suspects, 3) == [0]


def test_no_more_is_alone_than_is_left_to_generate() -> None:
    suspects = Suspects()
    for _ in range(2):
        suspects.judge(crash(1, 2), base(1, 2))
    assert suspects.num_alone(1, (), 3) == 3


def test_adapters_without_end_leave_no_trace() -> None:
    suspects = Suspects()
    for index in range(3 * MAX_ADAPTERS):
        assert suspects.judge(crash(digest=str(index)), {}) == NOBODY
    assert len(suspects._accused_adapters) == MAX_ADAPTERS
