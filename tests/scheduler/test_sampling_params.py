"""SamplingParams: vLLM's names, defaults and helpers."""

import math
from dataclasses import fields
from typing import Any

import pytest

from blora.scheduler import RequestOutputKind, SamplingParams

# Of vLLM's own class.
DEFAULTS: dict[str, Any] = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "flat_logprobs": False,
    "detokenize": True,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "output_kind": RequestOutputKind.CUMULATIVE,
    "skip_clone": False,
    "routed_experts_prompt_start": 0,
}


def test_the_defaults_are_vllms() -> None:
    found = {field.name: field.default for field in fields(SamplingParams) if field.default is not None}
    assert found == DEFAULTS


def test_fields_may_be_assigned_and_misspelt_ones_not() -> None:
    params = SamplingParams(temperature=0.5)
    params.temperature, params.stop = 0.0, ["x"]
    assert params == SamplingParams(temperature=0.0, stop=["x"])
    with pytest.raises(AttributeError):
        params.temprature = 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("skip_clone", [False, True])
def test_a_clone_shares_nothing(skip_clone: bool) -> None:
    params = SamplingParams(stop=["x"], stop_token_ids=[1], logit_bias={1: 2.0}, skip_clone=skip_clone)
    clone = params.clone()
    assert clone == params
    for name in ("stop", "stop_token_ids", "logit_bias"):
        assert getattr(clone, name) is not getattr(params, name)


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingParams)])
def test_none_is_the_default(name: str) -> None:
    expected = SamplingParams(max_tokens=None) if name == "max_tokens" else SamplingParams()
    assert SamplingParams.from_optional(**{name: None}) == expected


def test_biases_of_an_openai_client_are_read() -> None:
    params = SamplingParams.from_optional(logit_bias={"5": 1000, 6: -1e9, "7": 0.5}, temperature=0, stop="x")
    assert params == SamplingParams(logit_bias={5: 100.0, 6: -100.0, 7: 0.5}, temperature=0, stop="x")
    assert math.isnan((SamplingParams.from_optional(logit_bias={1: math.nan}).logit_bias or {})[1])
    with pytest.raises(ValueError, match=r"^logit_bias: .*'five'"):
        SamplingParams.from_optional(logit_bias={"five": 1.0})
