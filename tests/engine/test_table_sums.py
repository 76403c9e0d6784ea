"""Sums of adapters that change the embedding and the head against PEFT's, prompt tokens included, on both backends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tiny import make_adapter, quiet
from transformers import LlamaForCausalLM

from blora.engine import LLM, SamplingParams

FIELDS: dict[str, dict[str, Any]] = {
    "both": {"r": 4, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "head": {"r": 6, "target_modules": ["lm_head", "down_proj"]},
    "embedding": {"r": 3, "target_modules": ["embed_tokens"]},
}
SUMS = [{"both": 0.5, "head": 1.5}, {"both": -1.0, "embedding": 0.7}, {"both": 1.0, "embedding": 0.5, "head": -0.5}]
SAMPLING = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=2, prompt_logprobs=2)
NEAR = 5e-4


def peft_logprobs(model: Path, folders: dict[str, Path], scales: dict[str, float], tokens: list[int]) -> torch.Tensor:
    """Returns the logprobs after each token: [num_tokens, vocab]."""
    first, *others = scales
    with quiet():
        adapted: Any = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model), folders[first], first)
        for name in others:
            adapted.load_adapter(folders[name], name)
        adapted.base_model.add_weighted_adapter(list(scales), list(scales.values()), "sum", combination_type="cat")
    adapted.set_adapter("sum")
    with torch.inference_mode():
        logits: torch.Tensor = adapted(input_ids=torch.tensor([tokens])).logits[0]
    return logits.log_softmax(-1)


def test_sums_on_tables_equal_peft_in_one_mixed_batch(
    make_llm: Callable[..., LLM], tiny_model: Path, tmp_path: Path
) -> None:
    folders = {
        name: make_adapter(tiny_model, tmp_path / name, seed, **fields)
        for seed, (name, fields) in enumerate(FIELDS.items())
    }
    llm = make_llm(adapters={name: str(path) for name, path in folders.items()}, max_num_batched_tokens=20)
    uses: list[Any] = [None, *SUMS, "head"]
    prompts = [f"a prompt, number {index}" for index in range(len(uses))]
    outputs = llm.generate(prompts, SAMPLING, lora_request=uses, use_tqdm=False)
    for use, output in zip(uses, outputs, strict=True):
        if not isinstance(use, dict):
            continue
        tokens = output.prompt_token_ids + output.outputs[0].token_ids
        expected = peft_logprobs(tiny_model, folders, use, tokens)
        told = [*(output.prompt_logprobs or ())[1:], *(output.outputs[0].logprobs or ())]
        assert len(told) == len(tokens) - 1
        for position, (row, entries) in enumerate(zip(expected, told, strict=False)):
            for token, entry in entries.items():
                assert abs(entry.logprob - row[token]) < NEAR, (use, position, token)
