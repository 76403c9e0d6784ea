"""Adapter rows against PEFT, with one adapter active there, and all of them and base rows in one batch here."""

from collections.abc import Callable
from pathlib import Path

import pytest
from compare import assert_same_tokens, first_difference
from peft import PeftModel
from peft_greedy import greedy_tokens
from transformers import LlamaForCausalLM

from blora.engine import LLM, SamplingParams

PROMPTS = ["a first prompt", "another, which is a little longer than the first", "x"]
NUM_TOKENS = 24


def peft_tokens(model: Path, adapter: Path | None, prompt: list[int]) -> list[int]:
    base = LlamaForCausalLM.from_pretrained(model)
    adapted = base if adapter is None else PeftModel.from_pretrained(base, adapter)
    return greedy_tokens(adapted, prompt, NUM_TOKENS)


@pytest.mark.slow
def test_adapters_of_all_ranks_and_modules_equal_peft_in_one_mixed_batch(
    make_llm: Callable[..., LLM], tiny_model: Path, tiny_adapters: dict[str, Path]
) -> None:
    llm = make_llm(adapters={name: str(path) for name, path in tiny_adapters.items()}, max_num_batched_tokens=50)
    names = [None, *tiny_adapters]
    sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2)
    batch = [(prompt, name) for prompt in PROMPTS for name in names]
    outputs = llm.generate(
        [prompt for prompt, _ in batch], sampling, lora_request=[name for _, name in batch], use_tqdm=False
    )
    different = set()
    for (prompt, name), output in zip(batch, outputs, strict=True):
        reference = peft_tokens(tiny_model, tiny_adapters.get(name or ""), output.prompt_token_ids)
        ours = output.outputs[0]
        at = first_difference(ours.token_ids, reference)
        if at is not None:  # only near ties may differ
            import dataclasses

            assert_same_tokens(ours, dataclasses.replace(ours, token_ids=reference), (prompt, name, at))
        different.add(tuple(ours.token_ids))
    assert len(different) == len(batch), "every adapter changes every answer"
