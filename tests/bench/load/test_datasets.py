"""Datasets draw the same samples for a seed, and say what is wrong with a file."""

import json
from collections import Counter
from pathlib import Path

import pytest

from blora.bench.demo.tasks import TASKS
from blora.bench.load import Planned, Record
from blora.bench.load.answers import is_right
from blora.bench.load.datasets import Custom, Dataset, DemoTasks, SharedPrefix, ShareGPT, TimedTrace


def test_groups_of_prompts_begin_alike_and_take_as_many_each() -> None:
    samples = SharedPrefix(vocab_size=1000, prefix_len=5, suffix_len=3, num_prefixes=4, output_len=7).draw(40, 1)
    prefixes = Counter(tuple(sample.prompt[:5]) for sample in samples)
    assert list(prefixes.values()) == [10] * 4
    assert {(len(sample.prompt), sample.max_tokens) for sample in samples} == {(8, 7)}
    assert [tuple(sample.prompt[:5]) for sample in samples[:4]] != list(prefixes)[:1] * 4  # they come mixed


def test_conversations_of_sharegpt(tmp_path: Path) -> None:
    file = tmp_path / "conversations.json"
    turns = [{"from": "human", "value": "How are you?"}, {"from": "gpt", "value": "x" * 41}]
    kept, short, single = turns, [{"value": "Hi"}, turns[1]], turns[:1]
    file.write_text(json.dumps([{"conversations": some} for some in (kept, short, single)]))
    samples = ShareGPT(path=file).draw(3, 0)
    assert {(sample.prompt, sample.max_tokens) for sample in samples} == {("How are you?", 11)}
    assert ShareGPT(path=file, output_len=5).draw(1, 0)[0].max_tokens == 5


def test_lines_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a", "output_tokens": 3, "adapter": "x", "expected": "b"}, {"prompt": [1, 2]}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    samples = Custom(path=file, output_len=9).draw(4, 0)  # more than there are: all again
    assert Counter(str(sample.prompt) for sample in samples) == {"a": 2, "[1, 2]": 2}
    first, second = sorted(samples[:2], key=lambda sample: sample.max_tokens)
    assert (first.max_tokens, first.adapter, first.expected) == (3, "x", "b")
    assert (second.max_tokens, second.adapter, second.prompt) == (9, None, [1, 2])


def test_a_trace_has_times_lengths_and_prompts_that_begin_alike(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 1000, "input_length": 10, "output_length": 3, "hash_ids": [1, 2]},
        {"timestamp": 4000, "input_length": 9, "output_length": 4, "hash_ids": [1, 3], "adapter": "x"},
        {"timestamp": 5000, "input_length": 3, "output_length": 4},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    first, second, third = TimedTrace(path=file, vocab_size=10_000, speed=2.0, block_size=4).draw(3, 0)
    assert [sample.seconds for sample in (first, second, third)] == [0.0, 1.5, 2.0]
    assert [len(sample.prompt) for sample in (first, second, third)] == [10, 9, 3]
    assert first.prompt[:4] == second.prompt[:4] and first.prompt[4:8] != second.prompt[4:8]
    assert (second.max_tokens, second.adapter) == (4, "x")


def test_prompts_of_the_demo_have_their_answers() -> None:
    for sample in DemoTasks().draw(20, 3):
        planned = Planned(seconds=0, prompt=sample.prompt, max_tokens=1, expected=sample.expected, check=sample.check)
        record = Record(planned, status="OK")
        assert sample.adapter == sample.check and sample.adapter in TASKS
        assert is_right(record) is False  # there is no answer
        record.answer(0).text = f"{sample.expected}"
        assert is_right(record) is True
        record.answers[0].text += " and more"
        assert is_right(record) is False
    assert "<|im_start|>" not in str(DemoTasks(is_chat=True).draw(1, 0)[0].prompt)


def test_an_answer_without_a_task_is_the_expected_text() -> None:
    record = Record(Planned(seconds=0, prompt="a", max_tokens=1, expected="b"), status="OK")
    record.answer(0).text = " b\n"
    assert is_right(record) is True
    record.answers[0].text = "B"
    assert is_right(record) is False
    assert is_right(Record(Planned(seconds=0, prompt="a", max_tokens=1), status="OK")) is None
    record.status = "INTERNAL"
    assert is_right(record) is None


@pytest.mark.parametrize(
    "dataset",
    [
        SharedPrefix(vocab_size=50, prefix_len=5, suffix_len=3, num_prefixes=2, output_len=7),
        DemoTasks(),
    ],
)
def test_the_seed_decides_all(dataset: Dataset) -> None:
    assert dataset.draw(10, 1) == dataset.draw(10, 1) != dataset.draw(10, 2)


@pytest.mark.parametrize(
    ("content", "named"), [("{", "line 1"), ("3", "line 1"), ("", "no prompt"), ("{}", "no 'prompt'")]
)
def test_a_file_that_is_not_what_its_form_says_is_refused(tmp_path: Path, content: str, named: str) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    with pytest.raises(ValueError, match=named):
        Custom(path=file, output_len=1).draw(1, 0)
    with pytest.raises(ValueError):
        ShareGPT(path=file).draw(1, 0)
