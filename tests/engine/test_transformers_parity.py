"""The real model in float32 against transformers: greedy tokens of 20 prompts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare import assert_same_tokens, first_difference
from transformers import AutoModelForCausalLM, AutoTokenizer

from blora.engine import LLM, SamplingParams

NUM_TOKENS = 64
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village,",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three laws of motion were written by",
    "To make a good cup of tea, first",
    "1, 2, 3, 5, 8,",
    "Dear Sir or Madam,",
    "In 1969, humans first",
    "The difference between a list and a tuple in Python is",
    "She opened the door and saw",
    "Photosynthesis is the process by which",
    "SELECT name FROM",
    "The best way to learn a language is",
    "Ein kurzer Satz auf Deutsch:",
    "Roses are red,",
    "Question: What is the largest planet?\nAnswer:",
    "An adapter is a small set of weights that",
    "Paged attention stores keys and values in",
    "Good morning! Today I want to talk about",
]


@pytest.mark.timeout(900)
def test_greedy_tokens_of_the_real_model_equal_transformers(make_llm: Callable[..., LLM], real_model: Path) -> None:
    torch.set_num_threads(2)
    try:
        llm = make_llm(real_model, dtype="float32", memory="1GiB", block_size=16, max_num_batched_tokens=48)
        sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2)
        outputs = llm.generate(PROMPTS, sampling, use_tqdm=False)
        references = transformers_tokens(real_model)
    finally:
        torch.set_num_threads(1)
    for prompt, output, reference in zip(PROMPTS, outputs, references, strict=True):
        ours = output.outputs[0]
        if first_difference(ours.token_ids, reference) is not None:
            assert_same_tokens(ours, replace(ours, token_ids=reference), prompt)


def transformers_tokens(model: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            output = reference.generate(
                **ids, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None
            )
        tokens.append(output[0, ids["input_ids"].shape[1] :].tolist())
    return tokens
