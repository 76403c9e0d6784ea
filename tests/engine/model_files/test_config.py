"""Reading config.json: both of transformers' styles, defaults of each architecture, and refusals by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blora.engine.model_files.config import ModelConfig, UnsupportedModel
from blora.engine.model_files.read_config import load_model_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "dtype": "bfloat16",
}


def load(folder: Path, fields: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(fields))
    return load_model_config(folder)


def of(architecture: str, **fields: Any) -> dict[str, Any]:
    return {**LLAMA, "architectures": [f"{architecture}ForCausalLM"], **fields}


def test_defaults_of_llama(tmp_path: Path) -> None:
    config = load(tmp_path, {**LLAMA, "num_key_value_heads": None, "head_dim": None, "rope_scaling": None})
    assert (config.num_kv_heads, config.head_dim, config.max_position_embeddings) == (4, 8, 2048)
    assert (config.rope.rope_type, config.rope.theta) == ("default", 10000.0)
    assert not (config.qkv_bias or config.o_bias or config.mlp_bias or config.qk_norm or config.tie_word_embeddings)
    assert config.sliding_windows == (None, None, None)


def test_both_styles_of_rope_and_dtype(tmp_path: Path) -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}, "torch_dtype": "float16"}
    del old["dtype"]
    new = {**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}, "dtype": "float16"}
    config = load(tmp_path, old)
    assert config == load(tmp_path, new)
    assert (config.rope.theta, config.rope.original_max_positions, config.dtype) == (5e5, 8192, "float16")


def test_yarn_extends_the_length_that_the_card_leaves_alone(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    fields = of("Qwen2", num_key_value_heads=2, max_position_embeddings=32768, rope_scaling=scaling)
    config = load(tmp_path, fields)
    assert config.max_position_embeddings == 131072


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        (of("Mistral"), (4096,) * 3),
        (of("Mistral", sliding_window=None), (None,) * 3),
        (of("Qwen2", use_sliding_window=False, max_window_layers=0), (None,) * 3),
        (of("Qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=2), (None, None, 9)),
        (of("Qwen3", use_sliding_window=True, sliding_window=None, max_window_layers=0), (None,) * 3),
    ],
)
def test_windows(fields: dict[str, Any], windows: tuple[int | None, ...], tmp_path: Path) -> None:
    assert load(tmp_path, {**fields, "num_key_value_heads": 2}).sliding_windows == windows


def test_qwen_biases_and_norms(tmp_path: Path) -> None:
    qwen2 = load(tmp_path, of("Qwen2", num_key_value_heads=2))
    qwen3 = load(tmp_path, of("Qwen3", num_key_value_heads=2, attention_bias=True))
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm, qwen2.head_dim) == (True, False, False, 8)
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.qk_norm, qwen3.head_dim) == (True, True, True, 128)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM"]),
        ({"architectures": None}, ["architectures", "MistralForCausalLM"]),
        ({"architectures": ["Qwen2Model"]}, ["without its head", "Qwen2ForCausalLM"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "silu"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["'dynamic'", "default, linear, llama3, yarn"]),
        ({"rope_scaling": {"type": "linear"}}, ["factor"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["differ by layer type"]),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "'gptq'"]),
        ({"dtype": "float64"}, ["dtype", "'float64'", "bfloat16"]),
        ({"hidden_size": None}, ["hidden_size", "None"]),
        ({"num_key_value_heads": 3}, ["4 heads", "3 key-value heads"]),
        ({"head_dim": 7}, ["head_dim", "7"]),
        (of("Mistral", layer_types=["full_attention"] * 3), ["layer_types", "sliding_attention in all layers"]),
        (of("Qwen3", layer_types=["chunked_attention"] * 3), ["'chunked_attention'", "full_attention"]),
        (of("Qwen3", layer_types=["sliding_attention"] * 3), ["no sliding_window"]),
        (of("Qwen3", layer_types=["full_attention"]), ["layer_types names 1 layers"]),
    ],
)
def test_refusals_name_what_was_found(fields: dict[str, Any], named: list[str], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        load(tmp_path, {**LLAMA, **fields})
    for text in named:
        assert text in str(caught.value)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no config\.json"):
        load_model_config(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"1"])
def test_a_config_that_is_no_object_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        load_model_config(tmp_path)


def test_number_of_parameters(tiny: Any) -> None:
    model = tiny.save("LlamaForCausalLM", tie_word_embeddings=True)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    assert load_model_config(tiny.folder).num_parameters == matrices


def test_dtype_of_the_weights_where_the_config_names_none(tiny: Any) -> None:
    tiny.save("LlamaForCausalLM")
    file = tiny.folder / "config.json"
    fields = json.loads(file.read_text())
    del fields["dtype"]
    file.write_text(json.dumps(fields))
    assert load_model_config(tiny.folder).dtype == "float32"


def test_the_front_end_needs_no_torch() -> None:
    files = ["config", "read_config", "hub", "architectures", "gguf_config"]
    modules = [*(f"model_files.{name}" for name in files), "model.targets"]
    imports = "; ".join(f"import blora.engine.{module}" for module in modules)
    subprocess.run([sys.executable, "-c", f"import sys; {imports}; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize(
    "field", ["num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "max_position_embeddings"]
)
def test_sizes_that_no_model_has_are_refused_before_anything_is_made_of_them(
    tmp_path: Path, architecture: str, field: str
) -> None:
    for number in (1_000_000 if field.startswith("num") else 1 << 30, 10**15, 10**400):
        with pytest.raises(UnsupportedModel, match=field) as caught:
            load(tmp_path, of(architecture, num_key_value_heads=4, **{field: number}))
        assert len(str(caught.value)) < 300
