"""The program that tries the gates: it tells failures as failures, and the page shows what the file of results says."""

from collections.abc import Iterator
from math import isfinite
from pathlib import Path

import pytest
from chaos import scenarios
from chaos.gates import GATES, PARTS, Check, Gate, at_least, at_most, none_of
from chaos.many_requests import bytes_left
from chaos.results import PAGE, page_with, read_results, summary_of, table_of, try_gate, write_results
from chaos.room import Room
from simulation.clock import run

assert scenarios  # importing them fills GATES


def checks(room: Room) -> Iterator[Check]:
    yield at_least("goodput", 0.95, 0.9, "%")
    yield at_most("gap", float(room.scaled(300)), 200.0, "ms")
    yield none_of("wrong answers", [], 40)


def broken(_: Room) -> Iterator[Check]:
    yield at_least("goodput", 0.95, 0.9, "%")
    raise OSError("the server | did not start")


def test_the_page_shows_the_results() -> None:
    page = PAGE.read_text()
    assert page == page_with(table_of(read_results()), page), "run: cd tests && python -m chaos --page"


def test_every_gate_belongs_to_a_part_and_says_what_is_wanted() -> None:
    assert {gate.part for gate in GATES.values()} <= set(PARTS)
    assert all(gate.title and gate.wanted for gate in GATES.values())


def test_a_failed_check_and_an_error_fail_the_gate_and_are_told() -> None:
    gate = Gate("G2", "inside", "a title", "a limit", checks)
    small, whole = (try_gate(gate, seed=5, scale=scale) for scale in (0.5, 1.0))
    assert (small["is_passed"], whole["is_passed"]) == (True, False)
    assert "FAIL gap 300 ms (wanted: gap at most 200 ms)" in summary_of(gate, whole)
    assert "goodput 95.0%; **gap 300 ms**; 0 wrong answers of 40 (seed 5, 0 s" in table_of({"G2": whole})
    failed = try_gate(Gate("G2", "inside", "a title", "a limit", broken), seed=0, scale=1.0)
    assert not failed["is_passed"]
    row = next(line for line in table_of({"G2": failed}).splitlines() if line.startswith("| G2"))
    assert "the server \\| did not start" in row and row.endswith("| **failed** |")


def test_results_are_kept_by_gate(tmp_path: Path) -> None:
    result = try_gate(Gate("G3", "inside", "a title", "a limit", checks), seed=1, scale=0.1)
    write_results({"G3": result, "of old": result}, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == {"G3": result}
    assert "| not run |" in table_of({})


@pytest.mark.slow
def test_a_scenario_runs_from_its_server_to_its_oracle() -> None:
    result = try_gate(GATES["G1"], seed=3, scale=0.01)
    assert result["is_passed"], result["checks"]


def test_many_requests_are_sent_in_simulation() -> None:
    assert isfinite(run(lambda: bytes_left(128)))
