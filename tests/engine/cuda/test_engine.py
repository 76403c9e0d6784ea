"""Whole engines on the CUDA backend: their tokens are the reference's, but where two tokens are as good as equal."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_flashinfer import FakeFlashInfer
from tiny import make_adapter

from blora.adapters.triton.lora import TritonLoRA
from blora.engine import LLM, CompletionOutput, SamplingParams

Pair = Callable[..., tuple[LLM, LLM]]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=2)
CLOSE = 0.03  # of log-probabilities: float16 is rounded in other places


def generate(llm: LLM, prompts: Sequence[str], adapters: Sequence[Any], sampling: SamplingParams = GREEDY) -> Any:
    outputs = llm.generate(list(prompts), sampling, lora_request=list(adapters), use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def assert_same(expected: Sequence[CompletionOutput], actual: Sequence[CompletionOutput]) -> None:
    """Row by row up to where the reference's two best tokens are close; most rows have to come to their end."""
    num_whole = 0
    for row, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        for at, (token, wanted) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=True)):
            best, second = sorted((entry.logprob for entry in theirs.logprobs[at].values()), reverse=True)[:2]
            if token != wanted:
                assert best - second < CLOSE, (row, at, best, second)
                break
            assert abs(ours.logprobs[at][token].logprob - best) < CLOSE, (row, at)
        else:
            num_whole += 1
    assert num_whole > len(expected) * 0.7


PROMPTS = ["a", "some words", "a longer prompt that takes more blocks than one", "and so on", "b" * 30, "the end"]


def test_mixed_adapters(make_pair: Pair, wide_model: Path, tmp_path: Path) -> None:
    """In Triton's interpreter, so few tokens: base rows, two adapters and both of them with scales."""
    adapters = {
        "first": make_adapter(wide_model, tmp_path / "first", 1, r=4, target_modules=["q_proj", "down_proj"]),
        "second": make_adapter(wide_model, tmp_path / "second", 2, r=20, target_modules=["o_proj", "up_proj"]),
    }
    uses = [None, "first", "second", {"first": 0.5, "second": -1.0}]
    reference, cuda = make_pair(wide_model)
    for llm in (reference, cuda):
        for name, folder in adapters.items():
            llm.load_adapter(name, folder)
    assert isinstance(cuda._core._runner._lora, TritonLoRA)
    few = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=2)
    expected = generate(reference, PROMPTS[:4], uses, few)
    assert_same(expected, generate(cuda, PROMPTS[:4], uses, few))
    assert len({tuple(output.token_ids) for output in expected}) == 4


@pytest.mark.parametrize("max_num_batched_tokens", [8, 64])
def test_chunked_prefill_beside_decode(
    make_pair: Pair, wide_model: Path, flashinfer: FakeFlashInfer, max_num_batched_tokens: int
) -> None:
    reference, cuda = make_pair(wide_model, max_num_batched_tokens=max_num_batched_tokens)
    nobody = [None] * len(PROMPTS)
    assert_same(generate(reference, PROMPTS, nobody), generate(cuda, PROMPTS, nobody))
    assert {
        "BatchDecodeWithPagedKVCacheWrapper.run",
        "BatchPrefillWithPagedKVCacheWrapper.run",
    } <= flashinfer.log.names()
