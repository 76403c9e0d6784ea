"""Generation defaults from a model's files: sampling parameters and the tokens that end a text."""

import json
from pathlib import Path
from typing import Any

import pytest

from blora.engine.front_end.generation_config import GenerationDefaults, load_generation_defaults
from blora.engine.model_files.config import UnsupportedModel
from blora.scheduler import SamplingParams


def make(folder: Path, generation: Any = None, config: Any = None) -> Path:
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def test_sampling_fields_become_defaults(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.1}
    model = make(tmp_path, fields | {"max_new_tokens": 99, "do_sample": True, "transformers_version": "5"})
    assert load_generation_defaults(model, None).sampling == SamplingParams(**fields, max_tokens=99)


def test_fields_that_are_null_or_missing_are_neutral(tmp_path: Path) -> None:
    model = make(tmp_path, {"temperature": None, "top_k": None, "top_p": 0.5})
    assert load_generation_defaults(model, None).sampling == SamplingParams(top_p=0.5)


def test_a_zero_is_a_value(tmp_path: Path) -> None:
    assert load_generation_defaults(make(tmp_path, {"temperature": 0}), None).sampling.temperature == 0


def test_neutral_defaults_where_asked(tmp_path: Path) -> None:
    model = make(tmp_path, {"temperature": 0.6, "eos_token_id": 7})
    defaults = load_generation_defaults(model, None, source="vllm")
    assert defaults.sampling == SamplingParams()
    assert defaults.eos_token_ids == {7}


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        (None, None, None, set()),
        (None, None, 5, {5}),
        ({"eos_token_id": 1}, None, None, {1}),
        ({"eos_token_id": [1, 2]}, {"eos_token_id": 3}, 4, {1, 2, 3, 4}),
        ({"eos_token_id": None}, {"eos_token_id": None}, None, set()),
        ({"eos_token_id": [1, None, "2"]}, {"eos_token_id": "3"}, None, {1}),
        ({}, {"eos_token_id": 0}, None, {0}),
        ({"eos_token_id": 1}, {"eos_token_id": [1]}, 1, {1}),
    ],
)
def test_every_source_of_end_tokens_counts(
    generation: Any, config: Any, tokenizer: int | None, expected: set[int], tmp_path: Path
) -> None:
    assert load_generation_defaults(make(tmp_path, generation, config), tokenizer).eos_token_ids == expected


def test_files_beside_a_gguf_file_are_not_read(tmp_path: Path) -> None:
    make(tmp_path, {"temperature": 0.1, "eos_token_id": 9})
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    defaults = load_generation_defaults(tmp_path / "model.gguf", 4)
    assert (defaults.sampling, defaults.eos_token_ids) == (SamplingParams(), frozenset({4}))


@pytest.mark.parametrize("content", [[], 1, "x", None])
def test_a_file_that_is_no_object_says_nothing(content: Any, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert load_generation_defaults(tmp_path, 3).sampling == SamplingParams()


def test_defaults_never_make_requests_fail() -> None:
    defaults = GenerationDefaults(SamplingParams(max_tokens=4096, temperature=0.5), frozenset({2, 300}))
    fitting = defaults.within(vocab_size=300, max_model_len=4096)
    assert fitting == GenerationDefaults(SamplingParams(max_tokens=None, temperature=0.5), frozenset({2}))
    assert defaults.within(vocab_size=301, max_model_len=4097) == defaults


@pytest.mark.parametrize("field", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"])
@pytest.mark.parametrize("value", [-7, 1e9 + 0.5, "0.5", True, [], float("nan")])
def test_a_default_that_no_request_may_have_is_left_out(
    field: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"temperature": 0.5, "top_k": 7} | {field: value}
    expected = {name: fields[name] for name in ("temperature", "top_k") if name != field}
    assert load_generation_defaults(make(tmp_path, fields), None).sampling == SamplingParams(**expected)
    assert f"{field} is ignored" in caplog.text


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"generation_config\.json"):
        load_generation_defaults(tmp_path, None)
