"""Logits of every architecture and rope type against transformers, float32, in one go, in chunks and token by token."""

from typing import Any

import pytest
import torch

TOLERANCE = 1e-4
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
    "rope_theta": 500.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 10000.0}
WINDOWED = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-mha": ("LlamaForCausalLM", {"num_key_value_heads": 4}),
    "llama-mqa": ("LlamaForCausalLM", {"num_key_value_heads": 1}),
    "llama-bias": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-head-dim": ("LlamaForCausalLM", {"head_dim": 12}),
    "llama-linear": ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "llama-llama3": ("LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("LlamaForCausalLM", {"rope_parameters": YARN}),
    "llama-yarn-mscale": (
        "LlamaForCausalLM",
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0, "truncate": False, "beta_fast": 8}},
    ),
    "llama-yarn-attention-factor": ("LlamaForCausalLM", {"rope_parameters": {**YARN, "attention_factor": 1.5}}),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 7}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2ForCausalLM", WINDOWED),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3-bias": ("Qwen3ForCausalLM", {"head_dim": 8, "attention_bias": True, "rope_parameters": YARN}),
    "qwen3-window": ("Qwen3ForCausalLM", {"head_dim": 8, **WINDOWED}),
    "qwen3-layer-types": (
        "Qwen3ForCausalLM",
        {**WINDOWED, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str, tiny: Any, backend: str) -> None:
    architecture, fields = CASES[case]
    model = tiny.save(architecture, **fields)
    for name, chunks in {"whole": [64], "chunked": [7, 3, 11, 5], "decoded": [1]}.items():
        worst = tiny.worst(model, chunks, backend=backend)
        assert worst <= TOLERANCE, f"{name}: {worst}"


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_row_does_not_change_with_its_neighbours(num_layers: int, tiny: Any, backend: str) -> None:
    tiny.save("Qwen3ForCausalLM", num_hidden_layers=num_layers, **WINDOWED)
    sequences = tiny.sequences(19, 4, 30)
    together = tiny.driver(3, backend=backend).run(sequences, [6, 1])
    for row, sequence in enumerate(sequences):
        alone = tiny.driver(1, backend=backend).run([sequence], [6, 1])[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_native_logits_are_the_same_bits_however_they_come_about(case: str, dtype: torch.dtype, tiny: Any) -> None:
    architecture, fields = CASES[case]
    tiny.save(architecture, **fields)
    sequences = tiny.sequences(33, 6, 50)
    together = tiny.driver(3, dtype=dtype, backend="cpu").run(sequences, [17, 1, 4])
    for row, sequence in enumerate(sequences):
        for chunks in ([64], [1]):
            assert torch.equal(together[row], tiny.driver(1, dtype=dtype, backend="cpu").run([sequence], chunks)[0])


def test_prefill_and_decode_in_one_step(tiny: Any, backend: str) -> None:
    model = tiny.save("LlamaForCausalLM")
    sequences = tiny.sequences(20, 13)
    driver = tiny.driver(2, backend=backend)
    driver.step({0: sequences[0][:19]})
    logits = driver.step({1: sequences[1], 0: sequences[0][19:]})
    torch.testing.assert_close(logits[0], tiny.expected(model, sequences[0])[19:], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(logits[1], tiny.expected(model, sequences[1]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.bfloat16, "reference"), (torch.float16, "reference"), (torch.bfloat16, "cpu")]
)
def test_half_precision_stays_near_float32(dtype: torch.dtype, backend: str, tiny: Any) -> None:
    model = tiny.save("Qwen3ForCausalLM")
    (sequence,) = tiny.sequences(25)
    logits = tiny.driver(1, dtype=dtype, backend=backend).run([sequence], [10, 1])[0]
    expected = tiny.expected(model, sequence)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().mean() < 0.05 * expected.std()
