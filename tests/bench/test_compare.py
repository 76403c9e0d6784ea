"""Two sets of results: ratios, their spread, and what is noise."""

import json
from pathlib import Path
from typing import Any

import pytest

from blora.bench.compare import format_comparison, read_results, verdict


def result(throughput: float, ttft: float) -> dict[str, Any]:
    return {"request_throughput": throughput, "request_goodput": None, "p99_ttft_ms": ttft}


@pytest.mark.parametrize(
    ("before", "after", "more_is_better", "says"),
    [
        ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], True, "better"),
        ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], False, "worse"),
        ([1.0, 1.1, 1.2], [0.5, 0.6, 0.9], True, "worse"),
        ([1.0, 1.1, 1.2], [0.5, 0.6, 0.9], False, "better"),
        ([1.0, 1.1, 1.2], [1.2, 1.4, 1.5], True, "noise"),
        ([1.0, 1.1], [2.0, 2.1, 2.2], True, "too few runs"),
    ],
)
def test_a_difference_is_real_where_no_run_comes_between(
    before: list[float], after: list[float], more_is_better: bool, says: str
) -> None:
    assert verdict(before, after, more_is_better) == says


def test_ratios_of_medians_with_their_spread() -> None:
    text = format_comparison([result(t, 9.0) for t in (1.0, 2.0, 4.0)], [result(t, 9.0) for t in (3.0, 6.0, 6.0)])
    (line,) = [line.split() for line in text.splitlines() if line.startswith("request_throughput")]
    assert line == ["request_throughput", "2.00", "6.00", "3.00", "0.75", "6.00", "noise"]
    assert "request_goodput" not in text  # none of them has it


def test_files_of_one_result_of_several_and_of_none(tmp_path: Path) -> None:
    one, several, none = (tmp_path / name for name in ("one", "several", "none"))
    one.write_text(json.dumps(result(1.0, 2.0), indent=1))
    several.write_text("".join(json.dumps(result(t, 2.0)) + "\n" for t in (1.0, 2.0)))
    assert [len(read_results(path)) for path in (one, several)] == [1, 2]
    for content in ("", "{}", "[1]", '{"request_throughput": 1}\n{'):
        none.write_text(content)
        with pytest.raises(ValueError, match="none"):
            read_results(none)
