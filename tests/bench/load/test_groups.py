"""Figures by group, fairness and reasons."""

import pytest

from blora.bench.load import Planned, Record
from blora.bench.load.groups import answers_of, by_group, fairness_of, refusals_of
from blora.bench.load.result import Goal


def record(adapter: str, status: str = "OK", details: str = "", **fields: object) -> Record:
    made = Record(Planned(seconds=0.0, prompt=[1], max_tokens=1, adapter=adapter, **fields), sent=0.0)  # type: ignore[arg-type]
    if status == "OK":
        made.note_tokens(0.5, 1)
    made.note_end(0.5, status, details)
    return made


RECORDS = [
    *[record("a")] * 3,
    record("a", "RESOURCE_EXHAUSTED", "would wait 3.5 s"),
    record("b"),
    record("b", "RESOURCE_EXHAUSTED", "would wait 7.1 s"),
]


def test_each_group_has_its_own_figures_over_the_whole_run() -> None:
    groups = by_group(RECORDS, lambda found: found.planned.adapter, Goal({"ttft": 600}), 2.0)
    assert [(name, group["completed"], group["failed"]) for name, group in groups.items()] == [("a", 3, 1), ("b", 1, 1)]
    assert groups["a"]["request_goodput"] == 1.5
    assert groups["a"]["share"] == pytest.approx(4 / 6)
    assert groups["b"]["p99_ttft_ms"] == pytest.approx(500)
    fairness = fairness_of(groups)
    assert fairness["jain"] == pytest.approx(1.25**2 / (2 * (0.75**2 + 0.5**2)))
    assert fairness["max_min"] == pytest.approx(1.5)


def test_a_group_that_got_nothing_has_no_ratio() -> None:
    groups = by_group([record("a"), record("b", "UNAVAILABLE")], lambda found: found.planned.adapter, Goal(), 1.0)
    assert fairness_of(groups) == {"jain": 0.5, "max_min": None}


def test_reasons_are_counted_without_their_numbers() -> None:
    assert refusals_of(RECORDS) == {"RESOURCE_EXHAUSTED: would wait #.# s": 2}


def test_answers_are_counted_where_the_right_one_is_known() -> None:
    right, wrong = record("a", expected="x"), record("a", expected="x")
    right.answer(0).text = "x"
    wrong.answer(0).text = "y"
    assert answers_of([*RECORDS, right, wrong]) == {"checked_answers": 2, "wrong_answers": 1}
