"""GGUF files, written here as llama.cpp's converter writes them, against the transformers model they hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, RopeScalingType
from torch import Tensor

from blora.engine.model_files.config import UnsupportedModel
from blora.engine.model_files.open_checkpoint import open_checkpoint
from blora.engine.model_files.read_config import load_model_config
from blora.engine.model_files.tensor_source import CheckpointError

DEFAULT_MODEL = Path(__file__).parents[3] / ".cache/models/SmolLM2-135M-Instruct"
F32, F16, BF16, Q8_0 = (GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0"))
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(f"{theirs}.", f"{ours}.")
    return name.replace("model.layers.", "blk.")


def to_neighbours(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Row i of the first half of a head becomes row 2i, row i of the second half row 2i + 1."""
    heads = values.reshape(num_heads, 2, -1, *values.shape[1:])
    result = np.empty_like(values.reshape(num_heads, -1, *values.shape[1:]))
    result[:, 0::2], result[:, 1::2] = heads[:, 0], heads[:, 1]
    return result.reshape(values.shape)


def write_gguf(
    path: Path,
    model: Any,
    matrices: GGMLQuantizationType = F32,
    architecture: str | None = None,
    rope_divisors: Tensor | None = None,
    keys: Mapping[str, Any] | None = None,
) -> None:
    """keys: "rope.scaling.factor" and such. Rounds the model's matrices to what is stored, for comparison."""
    config = model.config
    architecture = architecture or ARCHITECTURES.get(config.architectures[0], "qwen3")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if architecture == "qwen3":
        writer.add_key_length(config.head_dim)
    for key, value in (keys or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{architecture}.{key}", value)
    for name, parameter in model.named_parameters():
        add_tensor(writer, name, parameter, matrices if parameter.dim() == 2 else F32, architecture, config)
    if rope_divisors is not None:
        writer.add_tensor("rope_freqs.weight", rope_divisors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensor(
    writer: Any, name: str, parameter: Tensor, kind: GGMLQuantizationType, architecture: str, config: Any
) -> None:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    stored = parameter.detach().numpy()
    if heads is not None and architecture == "llama":
        stored = to_neighbours(stored, heads)
    quantized = gguf.quants.quantize(stored, kind)
    writer.add_tensor(gguf_name(name), quantized, raw_dtype=kind)
    rounded = torch.from_numpy(gguf.quants.dequantize(quantized, kind).copy())
    if heads is not None and architecture == "llama":
        rows = torch.from_numpy(to_neighbours(np.arange(len(stored)), heads))
        rounded = rounded[rows.argsort()]
    parameter.data = rounded


CASES: dict[str, tuple[str, dict[str, Any], GGMLQuantizationType]] = {
    "llama-f32": ("LlamaForCausalLM", {}, F32),
    "llama-f16-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}, F16),
    "llama-q8_0-bias": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}, Q8_0),
    "mistral-bf16": ("MistralForCausalLM", {"sliding_window": None}, BF16),
    "qwen2-q8_0": ("Qwen2ForCausalLM", {}, Q8_0),
    "qwen3-f16": ("Qwen3ForCausalLM", {"head_dim": 32, "tie_word_embeddings": True}, F16),
}
DTYPES = {F32: "float32", F16: "float16", BF16: "bfloat16", Q8_0: "bfloat16"}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str, tiny: Any, tmp_path: Path) -> None:
    architecture, fields, kind = CASES[case]
    model = tiny.save(architecture, **{"intermediate_size": 64, **fields})
    write_gguf(tmp_path / "model.gguf", model, kind)
    assert tiny.worst(model, [9, 1], tmp_path / "model.gguf") <= 1e-4
    config = load_model_config(tmp_path / "model.gguf")
    assert config.dtype == DTYPES[kind]
    assert config.tie_word_embeddings == fields.get("tie_word_embeddings", False)


def test_linear_rope(tiny: Any, tmp_path: Path) -> None:
    model = tiny.save("LlamaForCausalLM", rope_parameters={"rope_type": "linear", "factor": 4.0})
    keys = {"rope.scaling.type": RopeScalingType.LINEAR.value, "rope.scaling.factor": 4.0}
    write_gguf(tmp_path / "model.gguf", model, keys=keys)
    assert tiny.worst(model, [64], tmp_path / "model.gguf") <= 1e-4
    write_gguf(tmp_path / "old.gguf", model, keys={"rope.scale_linear": 4.0})
    assert load_model_config(tmp_path / "old.gguf") == load_model_config(tmp_path / "model.gguf")


def test_yarn_rope(tiny: Any, tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
    model = tiny.save("Qwen2ForCausalLM", rope_parameters=yarn)
    keys = {
        "rope.scaling.type": RopeScalingType.YARN.value,
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 24,
    }
    write_gguf(tmp_path / "model.gguf", model, keys=keys)
    assert tiny.worst(model, [64], tmp_path / "model.gguf") <= 1e-4


def test_llama3_rope_stands_in_a_tensor(tiny: Any, tmp_path: Path) -> None:
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 40,
        "rope_theta": 500.0,
    }
    model = tiny.save("LlamaForCausalLM", rope_parameters=llama3)
    plain = 1.0 / 500.0 ** (torch.arange(0, 8, 2) / 8)
    divisors = plain / model.model.rotary_emb.inv_freq
    assert divisors[0] == 1 and divisors[-1] == 8 and 1 < divisors[1] < 8
    write_gguf(tmp_path / "model.gguf", model, rope_divisors=divisors)
    assert tiny.worst(model, [64], tmp_path / "model.gguf") <= 1e-4


def test_sliding_window_of_mistral(tiny: Any, tmp_path: Path) -> None:
    model = tiny.save("MistralForCausalLM", sliding_window=7)
    write_gguf(tmp_path / "model.gguf", model, keys={"attention.sliding_window": 7})
    assert tiny.worst(model, [64], tmp_path / "model.gguf") <= 1e-4


@pytest.mark.parametrize(
    ("architecture", "keys", "named"),
    [
        ("gemma2", {}, ["'gemma2'", "llama, qwen2, qwen3"]),
        ("llama", {"rope.scaling.type": "longrope"}, ["'longrope'", "none, linear, yarn"]),
        (
            "llama",
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 1.5},
            ["attn_factor", "1.5"],
        ),
        ("qwen2", {"attention.sliding_window": 7}, ["attention.sliding_window", "7"]),
        ("llama", {"rope.dimension_count": 4}, ["rope.dimension_count", "head_dim, 8"]),
        ("llama", {"expert_count": 8}, ["expert_count", "dense models"]),
    ],
)
def test_refusals_name_what_was_found(
    architecture: str, keys: dict[str, Any], named: list[str], tiny: Any, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "model.gguf", tiny.save("LlamaForCausalLM"), architecture=architecture, keys=keys)
    with pytest.raises(UnsupportedModel) as caught:
        load_model_config(tmp_path / "model.gguf")
    for text in named:
        assert text in str(caught.value)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    for content in (b"", b"GGU", b"GGUF", b"GGUF\x03", b"not a GGUF file at all"):
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(UnsupportedModel, match="cannot be read as GGUF"):
            load_model_config(tmp_path / "model.gguf")


def test_a_tensor_that_no_place_is_known_for(tiny: Any, tmp_path: Path) -> None:
    model = tiny.save("LlamaForCausalLM")
    model.model.layers[0].extra = torch.nn.Linear(2, 2, bias=False)
    write_gguf(tmp_path / "model.gguf", model)
    with pytest.raises(CheckpointError, match=r"unused: blk\.0\.extra\.weight"):
        tiny.worst(model, [64], tmp_path / "model.gguf")


@pytest.mark.skipif(not DEFAULT_MODEL.exists(), reason="the default model is not made: bench/default_model.py")
def test_the_default_model_survives_a_round_trip(tmp_path: Path) -> None:
    """The real model's first layer, written as Q8_0 with llama.cpp's order of q and k, and read back."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=torch.float32, num_hidden_layers=1)
    write_gguf(tmp_path / "model.gguf", model, Q8_0)
    source = open_checkpoint(tmp_path / "model.gguf")
    for name, parameter in model.named_parameters():
        assert torch.equal(source.get(name), parameter.detach()), name
