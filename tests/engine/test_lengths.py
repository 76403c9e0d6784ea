"""How long an answer may become: max_tokens and min_tokens against the model's length, the memory and the defaults."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from blora.engine import LLM, InvalidRequest, SamplingParams

MODEL_LEN = 256  # of the tiny model


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "ignore_eos": True} | fields)


@pytest.fixture
def make_model_with(tiny_model: Path, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Makes the tiny model with a generation_config.json."""

    def make(defaults: dict[str, Any]) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder)
        (folder / "generation_config.json").write_text(json.dumps(defaults))
        return folder

    return make


def test_a_maximum_is_at_most(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    prompts = [[1] * 3, [1] * (MODEL_LEN - 2), [1] * (MODEL_LEN - 1)]
    outputs = llm.generate(prompts, greedy(max_tokens=10**9), use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [MODEL_LEN - 3, 2, 1]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}


@pytest.mark.parametrize("max_tokens", [1, 16, None, 10**9])
def test_only_a_prompt_that_fills_the_model_is_refused(make_llm: Callable[..., LLM], max_tokens: int | None) -> None:
    llm = make_llm()
    for length in (MODEL_LEN, MODEL_LEN + 1):
        with pytest.raises(InvalidRequest, match="^prompt: "):
            llm.generate([1] * length, greedy(max_tokens=max_tokens), use_tqdm=False)


def test_what_the_memory_can_never_hold_is_refused(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(memory="20KB")
    with pytest.raises(InvalidRequest, match="^max_tokens: .*pages"):
        llm.generate([1] * 10, greedy(max_tokens=10**9), use_tqdm=False)


def test_a_minimum_is_held_against_the_room(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    prompt = [1] * (MODEL_LEN - 5)
    (output,) = llm.generate(prompt, greedy(max_tokens=100, min_tokens=5), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 5
    with pytest.raises(InvalidRequest, match="^min_tokens: "):
        llm.generate(prompt, greedy(max_tokens=100, min_tokens=6), use_tqdm=False)


@pytest.mark.parametrize("default", [60, MODEL_LEN - 1, MODEL_LEN, 10**6, 0, -1, "many"])
def test_a_default_of_the_model_makes_no_request_fail(
    make_llm: Callable[..., LLM], make_model_with: Callable[[dict[str, Any]], Path], default: object
) -> None:
    """The memory has 76 tokens."""
    llm = make_llm(make_model_with({"max_new_tokens": default, "top_p": 3, "temperature": -1}), memory="20KB")
    (output,) = llm.generate([1] * 30, use_tqdm=False)
    assert output.finished and output.outputs[0].finish_reason in ("length", "stop")
    taken_over = llm.get_default_sampling_params()
    longer = greedy(max_tokens=taken_over.max_tokens, min_tokens=40)
    (output,) = llm.generate([1] * 30, longer, use_tqdm=False)
    assert 40 <= len(output.outputs[0].token_ids) <= 46


def test_a_prompt_beyond_the_model_is_cut_where_that_is_asked_for(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    text = "0123456789" * 100
    for length, cut in ((20, 20), (-1, MODEL_LEN - 8)):
        sampling = greedy(max_tokens=8, truncate_prompt_tokens=length)
        conversation = [{"role": "user", "content": text}]
        outputs = llm.generate([text, list(range(100)) * 10, "short"], sampling, use_tqdm=False)
        outputs += llm.chat(conversation, sampling, use_tqdm=False)
        assert [len(output.prompt_token_ids) for output in outputs] == [cut, cut, 5, cut]
        assert [len(output.outputs[0].token_ids) for output in outputs] == [8] * 4
        assert outputs[0].prompt == text
        (whole,) = llm.generate(text[-cut:], greedy(max_tokens=8), use_tqdm=False)
        assert whole.outputs[0].token_ids == outputs[0].outputs[0].token_ids


def test_prompts_from_a_tokenizer_of_transformers(make_llm: Callable[..., LLM], tiny_model: Path) -> None:
    llm = make_llm()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.eos_token
    texts = ["a prompt", "another prompt, which is longer"]
    expected = [output.outputs[0].token_ids for output in llm.generate(texts, greedy(), use_tqdm=False)]
    for encoded in (tokenizer(texts), tokenizer(texts, padding=True, return_tensors="pt")):
        outputs = llm.generate(encoded, greedy(), use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
    one = tokenizer(texts[0], return_tensors="np")
    for prompt in (one, one["input_ids"], one["input_ids"][0], {"prompt_token_ids": one["input_ids"][0]}):
        (output,) = llm.generate(prompt, greedy(), use_tqdm=False)
        assert output.outputs[0].token_ids == expected[0]
