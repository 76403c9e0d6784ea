"""Cosines and sines of the rope parameters of real models, at their real sizes, against transformers'."""

from typing import Any

import pytest
import torch

from blora.engine.model.rope import rope_cache, rotate
from blora.engine.model_files.hf_rope import rope_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1000000.0}
REAL = {
    "smollm2": (64, {"rope_type": "default", "rope_theta": 100000.0}),
    "vicuna-16k": (128, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "llama-3.2": (64, LLAMA3),
    "llama-3.1": (128, {**LLAMA3, "factor": 8.0}),
    "qwen2.5-yarn": (128, YARN),
    "yarn-mscale": (64, {**YARN, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0, "rope_theta": 10000.0}),
    "yarn-no-truncate": (64, {**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0}),
}


@pytest.mark.parametrize("name", REAL)
def test_cache_equals_that_of_transformers(name: str) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    head_dim, parameters = REAL[name]
    fields = {"max_position_embeddings": 131072, "rope_parameters": parameters}
    theirs = LlamaRotaryEmbedding(LlamaConfig(head_dim=head_dim, **fields))
    positions = torch.tensor([[0, 1, 2, 37, 1023, 4095]])
    cos, sin = theirs(torch.zeros(1), positions)
    ours = rope_cache(rope_config(fields), head_dim, 4096)
    for mine, expected in zip(ours, (cos, sin), strict=True):
        assert mine.shape == (4096, head_dim // 2) and mine.dtype == torch.float32
        # the same frequency may round to its neighbour, which at position 4095 is an angle of up to 4095 * 2**-24
        torch.testing.assert_close(mine[positions[0]], expected[0, :, : head_dim // 2], rtol=0, atol=5e-4)
        torch.testing.assert_close(mine[positions[0, :4]], expected[0, :4, : head_dim // 2], rtol=0, atol=5e-6)


def test_rotation_is_computed_in_float32_and_keeps_the_dtype() -> None:
    x: Any = torch.randn(5, 3, 8).bfloat16()
    cos, sin = (table[torch.arange(5), None] for table in rope_cache(rope_config({}), 8, 5))
    y = rotate(x, cos, sin)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, rotate(x.float(), cos, sin).bfloat16())
    assert torch.equal(y[0], x[0])
    torch.testing.assert_close(y.float().norm(dim=-1), x.float().norm(dim=-1), rtol=1e-2, atol=1e-2)
