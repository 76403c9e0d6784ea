"""Logprobs of the whole vocabulary, and the options that bound what one request may ask for."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_engine import shared_engine
from tiny import VOCAB_SIZE
from transformers import LlamaForCausalLM

from blora.engine import LLM, AsyncLLM, InvalidRequest, SamplingParams


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 3, "ignore_eos": True} | fields)


def test_the_whole_vocabulary_is_reported(make_llm: Callable[..., LLM], tiny_model: Path) -> None:
    llm = make_llm(max_logprobs=-1)
    (output,) = llm.generate("a prompt", greedy(logprobs=-1, prompt_logprobs=-1), use_tqdm=False)
    ids = output.prompt_token_ids + output.outputs[0].token_ids
    with torch.inference_mode():
        expected = LlamaForCausalLM.from_pretrained(tiny_model)(torch.tensor([ids])).logits[0].log_softmax(dim=1)
    assert output.prompt_logprobs is not None and output.outputs[0].logprobs is not None
    entries = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    for position, entry in enumerate(entries):
        assert entry is not None and len(entry) == VOCAB_SIZE
        assert math.isclose(sum(math.exp(one.logprob) for one in entry.values()), 1.0, abs_tol=1e-4)
        found = torch.tensor([entry[token_id].logprob for token_id in range(VOCAB_SIZE)])
        assert torch.allclose(found, expected[position], atol=1e-3)
        assert sorted(one.rank for one in entry.values()) == list(range(1, VOCAB_SIZE + 1))


def test_a_row_with_them_is_its_solo_run(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], backend: str
) -> None:
    llm = make_llm(max_logprobs=-1, adapters={"r4": tiny_adapters["r4"]})
    samplings = [greedy(logprobs=-1), greedy(logprobs=30), greedy()]
    outputs = llm.generate(["a"] * 3, samplings, lora_request=["r4", None, "r4"], use_tqdm=False)
    for sampling, adapter, output in zip(samplings, ["r4", None, "r4"], outputs, strict=True):
        (alone,) = llm.generate("a", sampling, lora_request=adapter, use_tqdm=False)
        assert output.outputs[0].token_ids == alone.outputs[0].token_ids
        if backend == "cpu":
            assert output.outputs[0].logprobs == alone.outputs[0].logprobs


@pytest.mark.slow
def test_over_processes_too(tiny_model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        async for output in llm.generate("a prompt", greedy(logprobs=-1, prompt_logprobs=100)):
            last = output
        assert last.prompt_logprobs is not None and last.outputs[0].logprobs is not None
        assert [len(entry) for entry in last.outputs[0].logprobs] == [VOCAB_SIZE] * 3
        assert {len(entry or ()) for entry in last.prompt_logprobs[1:]} <= {100, 101}

    shared_engine.run(tiny_model, body, {}, max_logprobs=-1)


@pytest.mark.parametrize(
    ("options", "fields", "field"),
    [
        ({}, {"logprobs": 21}, "logprobs"),
        ({}, {"logprobs": -1}, "logprobs"),
        ({"max_logprobs": 0}, {"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"max_logprobs": VOCAB_SIZE - 1}, {"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"max_n": 2}, {"n": 3}, "n"),
        ({"max_stops": 2}, {"stop": ["a", "b", "c"]}, "stop"),
        ({"max_stops": 2}, {"stop_token_ids": [1, 2, 3]}, "stop_token_ids"),
    ],
)
def test_beyond_an_option_is_refused(
    make_llm: Callable[..., LLM], options: dict[str, Any], fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: .*(max_|allowed)"):
        make_llm(**options).generate("a", greedy(**fields), use_tqdm=False)


def test_up_to_the_options_is_served(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(max_logprobs=50, max_n=40, max_stops=300)
    fields = {"n": 40, "logprobs": 50, "stop": ["never"] * 300, "stop_token_ids": [0] * 300}
    (output,) = llm.generate("a", greedy(**fields), use_tqdm=False)
    assert len(output.outputs) == 40
    assert {len(entry) for sample in output.outputs for entry in sample.logprobs or ()} <= {50, 51}


@pytest.mark.parametrize("value", [-2, 1.5, "5", True])
def test_a_bad_limit_is_refused_by_name(make_llm: Callable[..., LLM], value: Any) -> None:
    with pytest.raises(ValueError, match="^max_logprobs: "):
        make_llm(max_logprobs=value)
