"""Greedy tokens from PEFT's own generation, the oracle of adapters that PEFT can run alone."""

from typing import Any

import torch


def greedy_tokens(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    """Returns the next tokens of one prompt, ignoring the end token. model: a PeftModel, or a model of transformers."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens
