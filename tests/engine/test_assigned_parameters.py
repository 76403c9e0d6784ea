"""Sampling parameters that a user changes: requests keep the values that they were given at the call."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from shared_engine import shared_engine

from blora.engine import LLM, AsyncLLM, RequestOutputKind, SamplingParams


def params(num_tokens: int, **fields: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, **fields)  # type: ignore[arg-type]


@pytest.fixture
def llm(make_llm: Callable[..., LLM]) -> LLM:
    return make_llm()


def test_a_stream_keeps_what_it_was_given(llm: LLM) -> None:
    own = params(4, stop_token_ids=[])
    with llm.stream("a prompt", own) as stream:
        own.max_tokens, own.ignore_eos, own.temperature = 9, False, 1.0
        assert isinstance(own.stop_token_ids, list)
        own.stop_token_ids += range(200)
        tokens = [token for news in stream for output in news for token in output.outputs[0].token_ids]
    assert len(tokens) == 4


def test_defaults_are_copies(llm: LLM) -> None:
    before = llm.get_default_sampling_params()
    changed = llm.get_default_sampling_params()
    changed.max_tokens = 1
    assert llm.get_default_sampling_params() == before != changed
    (output,) = llm.generate("x", use_tqdm=False)
    assert len(output.outputs[0].token_ids) > 1


@pytest.mark.slow
def test_calls_of_async_llm_keep_what_they_were_given(tiny_model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        own = params(3, output_kind=RequestOutputKind.FINAL_ONLY)
        first = llm.generate("a prompt", own)
        chat = llm.chat([{"role": "user", "content": "hello"}], own)
        rows = llm.stream(["a", "b"], [own, own])
        own.max_tokens = 7
        defaults = llm.get_default_sampling_params()
        defaults.max_tokens = 1
        assert llm.get_default_sampling_params() != defaults
        assert [len(output.outputs[0].token_ids) async for output in first] == [3]
        assert [len(output.outputs[0].token_ids) async for output in chat] == [3]
        assert sum([len(output.outputs[0].token_ids) async for outputs in rows for output in outputs]) == 6

    shared_engine.run(tiny_model, body, {})


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE])
def test_streamed_outputs_have_an_intervals_tokens(tiny_model: Path, kind: RequestOutputKind) -> None:
    async def body(llm: AsyncLLM) -> None:
        outputs = [output async for output in llm.generate("x", params(10, stream_interval=4, output_kind=kind))]
        grown = [len(output.outputs[0].token_ids) for output in outputs]
        if kind is RequestOutputKind.CUMULATIVE:
            grown = [more - less for less, more in zip([0, *grown], grown, strict=False)]
        assert sum(grown) == 10
        assert all(num >= 4 for num in grown[1:-1]) and len(grown) <= 4

    shared_engine.run(tiny_model, body, {})


def test_a_field_without_effect_is_noticed_once(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            llm.generate(["a", "b"], params(1, skip_clone=True, skip_reading_prefix_cache=True), use_tqdm=False)
    assert caplog.text.count("SamplingParams.skip_clone has no effect") == 1
    assert caplog.text.count("SamplingParams.skip_reading_prefix_cache has no effect") == 1
    assert caplog.text.count("has no effect") == 2
