"""The peers' driver with fake workers: its figures, and that a failing worker ends only itself."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.peers.entry import Entry
from bench.peers.field import Field
from bench.peers.isolation import Isolation, check_isolation, compare
from bench.peers.measure import Figures, figures, measure
from bench.peers.protocol import Answer, Job, WorkerFailed, read_answer
from bench.peers.report import format_notes, format_table, medians, ratios, summarise
from bench.peers.run import choose, write
from bench.peers.work import MODES, Case, Work
from bench.peers.worker import Worker

ROOT = Path(__file__).parent.parent.parent
WORK = Work(rows=(1, 2), adapters=2, prompt_len=4, output_len=5, vocab_size=100)
# A row's tokens count up from the sum of its prompt and its adapter. The time is invented: 1 s, and 0.1 s for a token.
FAKE = """
import json, sys
speed, fault = float(sys.argv[1]), sys.argv[2]
print(json.dumps({"ready": True, "version": "1.5", "settings": "as it comes"}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    adapters = [9 if None in job["adapters"] and fault == "leaks" else (a or 0) for a in job["adapters"]]
    if all(a is None for a in job["adapters"]):
        adapters = [0] * len(adapters)
    if fault == "dies" and len(adapters) > 1:
        sys.exit("out of luck")
    n = job["max_tokens"] - (fault == "short")
    tokens = [[sum(p) + a + i for i in range(n)] for p, a in zip(job["prompts"], adapters)]
    print(json.dumps({"seconds": (1 + 0.1 * job["max_tokens"]) / speed, "tokens": tokens}), flush=True)
"""


def entry(peer: str, speed: float = 1, fault: str = "none", **changes: Any) -> Entry:
    command = (sys.executable, "-c", FAKE, str(speed), fault)
    return replace(Entry(peer, peer.title(), MODES, command, Path("model")), **changes)


def run(entries: list[Entry], tmp_path: Path, rounds: int = 1) -> dict[str, Any]:
    field = Field(entries, lambda entry: Worker(entry.command, tmp_path / f"{entry.name}.log", 20, 20))
    with field.running():
        greetings, isolation = field.greetings(), {}
        for entry in field.entries("adapters"):
            found = check_isolation(field, entry, WORK)
            if found is not None:
                isolation[entry] = found
        measured = measure(field, WORK, rounds)
    return summarise(WORK, entries, measured, greetings, field.out, isolation)


def test_speeds_and_ratios(tmp_path: Path) -> None:
    summary = run([entry("own", speed=3), entry("other", speed=2)], tmp_path, rounds=2)
    own, other = summary["peers"]
    result = own["results"]["2x0"]
    assert len(result["rounds"]) == 2
    assert result["median"]["prefill"] == pytest.approx(2 * 4 / 1.1 * 3)
    assert result["median"]["decode"] == pytest.approx(2 * 4 / 0.4 * 3)
    assert result["median"]["agreement"] == 1
    assert other["results"]["2x2"]["first_peer_ratio"] == pytest.approx({"decode": 1.5, "prefill": 1.5})
    assert list(other["results"]) == ["1x0", "2x0", "1x1", "2x2"]


def test_a_peer_that_fails_is_told_with_the_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    entries = [
        entry("own"),
        entry("dies", fault="dies", modes=("base",)),
        entry("short", fault="short"),
        entry("absent", needs=(Path("nowhere/bin/python"),)),
        entry("unknown", command=("no-such-program",)),
    ]
    summary = run(entries, tmp_path)
    peers = {peer["peer"]: peer for peer in summary["peers"]}
    out = {name: peer["workers"][0]["out"] for name, peer in peers.items()}
    assert out["own"] is None and len(peers["own"]["results"]) == 4
    assert out["dies"] == "it ended with status 1: out of luck" and list(peers["dies"]["results"]) == ["1x0"]
    assert out["short"] == "rows have [4] tokens instead of 5"
    assert out["absent"] == "its environment is missing: there is no nowhere/bin/python"
    assert "cannot be started" in out["unknown"]
    assert "Absent: missing" in format_table(summary)
    assert "Unknown, base and adapters is missing: no-such-program" in format_notes(summary)


def test_base_rows_that_take_an_adapters_tokens_are_counted(tmp_path: Path) -> None:
    summary = run([entry("own"), entry("leaks", fault="leaks")], tmp_path)
    own, leaks = (peer["workers"][0]["isolation"] for peer in summary["peers"])
    assert own == {"base_rows": 2, "wrong": 0, "as_adapter": 0}
    assert leaks == {"base_rows": 2, "wrong": 2, "as_adapter": 0}
    assert compare([[1], [2], [3]], [[1], [1], [1]], [[[0], [2], [0]]]) == Isolation(3, 2, 1)


def test_the_table_is_markdown_with_two_lines_for_a_peer(tmp_path: Path) -> None:
    lines = format_table(run([entry("own", speed=3), entry("other", speed=2)], tmp_path)).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].split("|")][1:-1] == [
        *("", "1 row", "2 rows", "1 row, 1 adapter", "2 rows, 2 adapters", "wrong base rows")
    ]
    assert "Own 1.5" in lines[2] and "60 (22)" in lines[2] and "0 of 2" in lines[2]
    assert "Own / Other" in lines[4] and "1.50x (1.50x)" in lines[4]


def test_medians_are_of_rounds_and_ratios_of_rounds_that_both_have() -> None:
    own = {turn: Figures(1, 2, 10.0, speed, 1) for turn, speed in enumerate((100.0, 300.0, 200.0))}
    other = {turn: Figures(1, 2, 20.0, speed, 1) for turn, speed in ((0, 50.0), (2, 50.0))}
    assert medians(own)["decode"] == 200
    assert ratios(own, other) == {"decode": 3.0, "prefill": 0.5}
    assert ratios(own, {7: other[0]}) == {}


def test_a_pass_that_says_nothing_is_refused() -> None:
    case, answer = Case(1, 0), Answer(1.0, [[1]])
    with pytest.raises(ValueError, match="5 tokens took 1.00 s, one took 1.00 s"):
        figures(WORK, case, answer, answer, [[1]])
    with pytest.raises(WorkerFailed, match="out of memory"):
        read_answer({"error": "out of memory"}, Job([[1]], [None], 1))


def test_no_two_jobs_share_a_prompt_and_rows_are_spread_over_adapters() -> None:
    work = Work()
    jobs = [work.job(case, turn, tokens) for case in work.cases() for turn in range(2) for tokens in (1, 64)]
    prompts = [tuple(prompt) for job in jobs for prompt in job.prompts]
    assert len(set(prompts)) == len(prompts) == 4 * 2 * (1 + 16 + 64)
    assert all(len(prompt) == work.prompt_len for prompt in prompts)
    spread = work.job(Case(16, 8), 0, 1).adapters
    assert sorted(index for index in spread if index is not None) == sorted([*range(8), *range(8)])
    assert work.job(Case(16, 8), 0, 1) == work.job(Case(16, 8), 0, 1)


def test_a_worker_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="no answer within 0 seconds"):
        Worker([sys.executable, "-c", "input()"], tmp_path / "log", 0.2, 1)


def test_unknown_peers_are_named_and_results_name_no_place_of_this_machine(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no peer sglang"):
        choose([entry("own")], ["sglang"])
    write(tmp_path / "results/peers.json", {"out": f"there is no {ROOT}/.cache/peers"})
    assert str(ROOT) not in (tmp_path / "results/peers.json").read_text()
