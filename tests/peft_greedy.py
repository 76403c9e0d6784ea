"""What PEFT's own generation says, the oracle of adapters that it can run alone."""

from typing import Any

import torch


def greedy_tokens(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    """The next tokens of one prompt, the end token ignored. model: a PeftModel, or one of transformers."""
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
