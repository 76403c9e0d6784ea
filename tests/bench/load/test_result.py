"""Figures are those of the recorded times, under vLLM's keys."""

import random

import numpy as np
import pytest

from blora.bench.load import Planned, Record
from blora.bench.load.result import Goal, result_of


def answered(planned: float, sent: float, times: list[float], counts: list[int], status: str = "OK") -> Record:
    record = Record(Planned(seconds=planned, prompt=[1, 2], max_tokens=1), sent=sent)
    for time, count in zip(times, counts, strict=True):
        record.note_tokens(time, count)
    record.note_end(times[-1] if times else sent + 0.01, status)
    return record


def test_times_count_from_the_planned_arrival_and_beside_it_from_the_sending() -> None:
    result = result_of([answered(1.0, 1.4, [1.5, 1.7, 1.8], [1, 2, 1])], Goal())
    assert result["mean_ttft_ms"] == pytest.approx(500)
    assert result["mean_sent_ttft_ms"] == pytest.approx(100)
    assert result["mean_tpot_ms"] == pytest.approx(100)  # 0.3 s for three tokens after the first one
    assert result["mean_itl_ms"] == pytest.approx(150)  # two gaps between three messages
    assert result["mean_e2el_ms"] == pytest.approx(800)
    assert result["mean_lag_ms"] == pytest.approx(400)


def test_throughput_counts_what_ended_well_over_the_whole_run() -> None:
    records = [
        answered(0.0, 0.0, [0.5, 1.0], [1, 3]),
        answered(0.5, 0.5, [3.0, 4.0], [1, 1]),
        answered(1.0, 1.0, [], [], "RESOURCE_EXHAUSTED"),
    ]
    result = result_of(records, Goal({"ttft": 1000}))
    assert (result["duration"], result["completed"], result["failed"]) == (4.0, 2, 1)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (4, 6)
    assert (result["request_throughput"], result["output_throughput"]) == (0.5, 1.5)
    assert result["total_token_throughput"] == 2.5
    assert result["request_goodput"] == 0.25
    assert (result["max_concurrent_requests"], result["max_output_tokens_per_s"]) == (2, 3.0)
    assert result["statuses"] == {"OK": 2, "RESOURCE_EXHAUSTED": 1}
    assert result["mean_refusal_ms"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("limits", "is_good"),
    [({"ttft": 500}, True), ({"ttft": 499}, False), ({"tpot": 99}, False), ({"tpot": 101, "e2el": 801}, True)],
)
def test_a_good_request_meets_all_limits(limits: dict[str, float], is_good: bool) -> None:
    record = answered(1.0, 1.0, [1.5, 1.7, 1.8], [1, 2, 1])
    assert Goal(limits).is_met(record) == is_good
    record.status = "INTERNAL"
    assert not Goal(limits).is_met(record)


def test_percentiles_are_numpys() -> None:
    draw = random.Random(5)
    records = [answered(0.0, 0.0, [draw.expovariate(2.0)], [1]) for _ in range(97)]
    result = result_of(records, Goal(), ["ttft"], [5, 50, 99.9])
    values = [record.token_times[0] * 1e3 for record in records]
    for percent in (5, 50, 99.9):
        assert result[f"p{percent}_ttft_ms"] == pytest.approx(np.percentile(values, percent))
    assert result["std_ttft_ms"] == pytest.approx(np.std(values))
    assert "mean_itl_ms" not in result


def test_a_run_without_an_answer_has_a_result() -> None:
    assert result_of([], Goal({"ttft": 1}))["request_goodput"] == 0.0
