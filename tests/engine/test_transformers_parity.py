"""The real model in float32 against transformers: greedy tokens of prompts of many kinds."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import NEAR_TIE
from transformers import AutoModelForCausalLM, AutoTokenizer

from blora.engine import LLM, RequestOutput, SamplingParams

pytestmark = pytest.mark.slow

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


def greedy(model: Path, backend: str, prompts: list[str], num_tokens: int) -> list[RequestOutput]:
    llm = LLM(model, backend=backend, dtype="float32", memory="1GiB", block_size=16, max_num_batched_tokens=48)
    sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    llm.check_idle()
    return outputs


@pytest.mark.grid
def test_greedy_tokens_of_the_real_model_equal_transformers(
    backend: str, real_model: Path, cases: Callable[[int, int], int]
) -> None:
    num_tokens = cases(24, 64)
    outputs = greedy(real_model, backend, PROMPTS[-cases(7, len(PROMPTS)) :], num_tokens)
    gc.collect()  # two models in float32 at once would be a gigabyte more
    reference = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    for output in outputs:
        assert len(output.outputs[0].token_ids) == num_tokens
        check_greedy(reference, output)


@torch.inference_mode()
def check_greedy(reference: Any, output: RequestOutput) -> None:
    """Checks greedy tokens by one forward pass over prompt and answer, which gives transformers' best token at every
    position. If each of blora's tokens is the best after the tokens before it, transformers' greedy answer is the
    same."""
    tokens = output.outputs[0].token_ids
    logits = reference(torch.tensor([output.prompt_token_ids + tokens])).logits[0, -len(tokens) - 1 : -1]
    for index, (token_id, row) in enumerate(zip(tokens, logits, strict=True)):
        gap = float(row.max() - row[token_id])
        assert gap <= NEAR_TIE, f"{output.prompt!r}: token {index} is {gap:.6f} below transformers' best"


def test_the_tokenizer_is_that_of_transformers(make_llm: Callable[..., LLM], real_model: Path) -> None:
    tokenizer, reference = (
        make_llm(real_model, memory="100MiB").get_tokenizer(),
        AutoTokenizer.from_pretrained(real_model),
    )
    for prompt in [*PROMPTS, "<|im_start|>user\nspecial<|im_end|>", "12345 \u00e9\u4e2d\U0001f600"]:
        assert tokenizer.encode(prompt) == reference(prompt)["input_ids"]
