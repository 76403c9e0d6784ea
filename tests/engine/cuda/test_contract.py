"""Our calls against the installed FlashInfer: the fake has its parameters, and every call of an engine binds to it."""

import inspect
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import fake_flashinfer
import pytest
import torch
from cuda_models import WINDOWED, save_model
from fake_flashinfer import Call, FakeFlashInfer

from blora.engine import LLM, SamplingParams
from blora.engine.attention import flashinfer as attention

FAKE = FakeFlashInfer()
FUNCTIONS = (
    "append_paged_kv_cache",
    "merge_state_in_place",
    "rmsnorm",
    "fused_add_rmsnorm",
    "apply_rope_with_cos_sin_cache_inplace",
    "silu_and_mul",
)
SAMPLING = tuple(f"sampling.{function.__name__}" for function in fake_flashinfer.SAMPLING)
WRAPPERS = ("BatchDecodeWithPagedKVCacheWrapper", "BatchPrefillWithPagedKVCacheWrapper")
NAMES = [
    *FUNCTIONS,
    *SAMPLING,
    *(f"{wrapper}.{method}" for wrapper in WRAPPERS for method in ("__init__", "plan", "run")),
    "BatchDecodeWithPagedKVCacheWrapper.workspace_size",
]


def find(module: Any, name: str) -> Callable[..., Any]:
    # The decode wrapper's `plan` passes on any argument.
    name = name.replace("BatchDecodeWithPagedKVCacheWrapper.plan", "BatchDecodeWithPagedKVCacheWrapper._plan_impl")
    found: Callable[..., Any] = reduce(getattr, name.split("."), module)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_fake_has_the_parameters_of_the_library(name: str, real: Any) -> None:
    """Each parameter of the fake has the default of FlashInfer's, and its place if it may be positional."""
    theirs = inspect.signature(find(real, name)).parameters
    ours = inspect.signature(reduce(getattr, name.removeprefix("sampling.").split("."), fake_flashinfer)).parameters
    places = list(theirs)
    for place, (parameter, own) in enumerate(ours.items()):
        assert parameter in theirs, parameter
        assert own.default == theirs[parameter].default, parameter
        if own.kind is not inspect.Parameter.KEYWORD_ONLY:
            assert places[place] == parameter


@pytest.fixture
def calls(
    flashinfer: FakeFlashInfer,
    make_pair: Callable[..., tuple[LLM, LLM]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[Call]:
    """The calls of an engine whose model has every feature that changes them, in steps of prefill, decode and both,
    with shared prefixes, and in graphs."""
    model = save_model(tmp_path / "model", "Qwen3ForCausalLM", **WINDOWED)
    _, llm = make_pair(model, max_num_batched_tokens=8, max_num_seqs=2, enforce_eager=False, seed=None)
    llm.generate(["a prompt of some length", "b"], SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
    for filters in ({}, {"top_p": 0.5}, {"top_k": 3}, {"top_p": 0.5, "min_p": 0.1}):
        llm.generate("c", SamplingParams(max_tokens=1, **filters), use_tqdm=False)
    monkeypatch.setattr(attention, "WORTHWHILE_BYTES", 1)
    _, llm = make_pair(model, enforce_eager=True)
    for prompts in (["a prompt of some length"], ["a prompt of some length 1", "a prompt of some length 2"]):
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), use_tqdm=False)
    return flashinfer.log.calls


def test_every_call_of_an_engine_binds(calls: list[Call], real: Any) -> None:
    for call in calls:
        target = inspect.signature(find(real, call.name))
        is_method = "Wrapper." in call.name
        target.bind(*([None] if is_method else []), *call.args, **call.kwargs)
    assert {call.name for call in calls} == set(NAMES)


def test_every_plan_says_what_the_library_would_guess(calls: list[Call]) -> None:
    """FlashInfer's defaults are float16 and no causal mask."""
    plans = [call for call in calls if call.name.endswith(".plan")]
    assert {call.kwargs["window_left"] for call in plans} == {-1, 4}
    for call in plans:
        assert call.kwargs["q_data_type"] == call.kwargs["kv_data_type"] == torch.float16
        assert "causal" in call.kwargs or "Decode" in call.name
    assert {call.kwargs["causal"] for call in plans if "causal" in call.kwargs} == {True, False}
