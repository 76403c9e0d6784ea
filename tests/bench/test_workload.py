"""The adapters and the prompts of a workload's rows."""

from collections import Counter
from typing import Any

import pytest

from blora.bench.workload import Workload, skewed


def make(**fields: Any) -> Workload:
    return Workload(**{"rows": 16, "prompt_len": 8, "output_len": 4, "adapters": 4} | fields)


def test_uniform_is_even_and_the_rows_are_mixed() -> None:
    rows = make(rows=64, adapters=8).assign()
    assert Counter(rows) == dict.fromkeys(range(8), 8)
    assert rows != sorted(rows)


def test_more_adapters_than_rows_are_used_in_turn() -> None:
    work = make(rows=4, adapters=10)
    turns = [sorted(work.assign(turn)) for turn in range(3)]
    assert turns == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 8, 9]]


def test_identical_uses_one_and_distinct_uses_each_once() -> None:
    assert set(make(popularity="identical").assign()) == {0}
    assert sorted(make(popularity="distinct", adapters=16).assign()) == list(range(16))
    assert len(set(make(popularity="distinct", adapters=40).assign(turn=2))) == 16


def test_skewed_adapters_are_each_asked_half_as_often_again_as_the_next() -> None:
    counts = Counter(skewed(665, 6))
    assert [counts[adapter] for adapter in range(6)] == [243, 162, 108, 72, 48, 32]
    for count, adapters in ((1, 8), (16, 8), (64, 256)):
        spread = skewed(count, adapters)
        assert len(spread) == count and set(spread) <= set(range(adapters))
        assert spread == sorted(spread), "the popular ones first"


def test_the_base_share_is_of_all_rows() -> None:
    rows = make(rows=20, base_share=0.25).assign()
    assert rows.count(None) == 5 and len(rows) == 20
    assert make(base_share=1.0).assign() == [None] * 16
    assert make(adapters=0).assign() == [None] * 16


@pytest.mark.parametrize("popularity", ["uniform", "skewed"])
def test_a_seed_decides_everything(popularity: str) -> None:
    work = make(popularity=popularity, base_share=0.5)
    assert work.assign() == make(popularity=popularity, base_share=0.5).assign()
    assert work.assign() != make(popularity=popularity, base_share=0.5, seed=1).assign()
    assert work.prompts(100) == work.prompts(100)
    assert work.prompts(100) != make(seed=1).prompts(100)


def test_prompts_are_random_ids_that_share_no_prefix() -> None:
    prompts = make(rows=50).prompts(1000)
    assert {len(prompt) for prompt in prompts} == {8}
    assert all(0 <= token < 1000 for prompt in prompts for token in prompt)
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 50


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"popularity": "zipf"}, "popularity"),
        ({"base_share": 1.5}, "base_share"),
        ({"rows": 0}, "row"),
        ({"output_len": 1}, "output_len"),
        ({"popularity": "distinct", "adapters": 15}, "16 rows need as many adapters"),
    ],
)
def test_what_cannot_be_measured_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**fields)
