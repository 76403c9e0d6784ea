"""Reads the model config from a GGUF file: from the metadata keys of llama.cpp and from the names of the tensors.

The values of the tensors are read in `gguf.py`. Imports no torch.
"""

from pathlib import Path
from typing import Any

from .config import ModelConfig, RopeConfig, UnsupportedModel, check_bounded, unsupported
from .hf_fields import check_consistent
from .hf_rope import yarn_attention_factor

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
PLAIN_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ROPE_DIVISORS = "rope_freqs.weight"


class GGUFFile:
    """A GGUF file mapped into memory: metadata by key, tensors by name."""

    def __init__(self, path: Path) -> None:
        """Raises UnsupportedModel for a file that is not GGUF, one of several, or of an unsupported architecture."""
        from gguf import GGUFReader

        try:
            self._reader = GGUFReader(path)
        except Exception as error:  # GGUFReader trusts the file: a wrong byte may raise any type of error
            raise UnsupportedModel(f"{path} cannot be read as GGUF: {error}") from error
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in self._reader.tensors}
        self.architecture: str = self._contents("general.architecture", "")
        if self.architecture not in ARCHITECTURES:
            raise unsupported("GGUF architecture", self.architecture, ", ".join(ARCHITECTURES))
        if self._contents("split.count", 1) > 1:
            raise UnsupportedModel(f"{path} is one of several files of a model: merge them with llama-gguf-split")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default. Raises UnsupportedModel if there is neither.

        key: without its prefix, the architecture.
        """
        value = self._contents(f"{self.architecture}.{key}", default)
        if value is None:
            raise UnsupportedModel(f"the GGUF file has no {self.architecture}.{key}")
        return value

    def _contents(self, key: str, default: Any) -> Any:
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in torch's order, which the file reverses."""
        if name not in self.tensors:
            raise UnsupportedModel(f"the GGUF file has no tensor {name}")
        return tuple(int(size) for size in reversed(self.tensors[name].shape))


def gguf_model_config(path: Path) -> ModelConfig:
    file = GGUFFile(path)
    _check_supported(file)
    num_layers = check_bounded("block_count", "num_layers", file.get("block_count"))
    num_heads = file.get("attention.head_count")
    vocab_size, hidden_size = file.shape("token_embd.weight")
    head_dim = file.get("attention.key_length", hidden_size // num_heads)
    rope = _rope(file, head_dim)
    context = file.get("context_length")
    extended = int(rope.original_max_positions * rope.factor) if rope.rope_type == "yarn" else context
    config = ModelConfig(
        architecture=ARCHITECTURES[file.architecture],
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=file.get("feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=file.get("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rms_norm_eps=file.get("attention.layer_norm_rms_epsilon"),
        rope=rope,
        max_position_embeddings=max(context, extended),
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        o_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        sliding_windows=_sliding_windows(file, num_layers),
        tie_word_embeddings="output.weight" not in file.tensors,
        dtype=_dtype(file),
    )
    check_consistent(config)
    return config


def _check_supported(file: GGUFFile) -> None:
    if file.get("expert_count", 0):
        raise unsupported("expert_count", file.get("expert_count"), "dense models")
    for key in ("block_count", "attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        if isinstance(file.get(key, 1), list):
            raise unsupported(key, file.get(key), "one number for all layers")


def _sliding_windows(file: GGUFFile, num_layers: int) -> tuple[int | None, ...]:
    """Mistral's one window for all layers. Raises UnsupportedModel for Qwen's: no file says which layers slide."""
    window = file.get("attention.sliding_window", 0) or None
    if window is not None and file.architecture != "llama":
        raise unsupported("attention.sliding_window", window, "no window for this architecture in a GGUF file")
    return (window,) * num_layers


def _dtype(file: GGUFFile) -> str:
    """The dtype of the matrices; bfloat16 for quantised ones, which need its range and have less precision."""
    name = "blk.0.attn_q.weight"
    file.shape(name)
    return PLAIN_DTYPES.get(file.tensors[name].tensor_type.name, "bfloat16")


def _rope(file: GGUFFile, head_dim: int) -> RopeConfig:
    if file.get("rope.dimension_count", head_dim) != head_dim:
        raise unsupported("rope.dimension_count", file.get("rope.dimension_count"), f"head_dim, {head_dim}")
    theta = float(file.get("rope.freq_base", 10000.0))
    factor = file.get("rope.scaling.factor", file.get("rope.scale_linear", 0.0)) or 1.0  # the second key is the old one
    rope_type = file.get("rope.scaling.type", "none" if factor == 1.0 else "linear")
    if rope_type == "yarn":
        return _yarn(file, theta, factor)
    if rope_type not in ("none", "linear"):
        raise unsupported("rope.scaling.type", rope_type, "none, linear, yarn")
    if ROPE_DIVISORS in file.tensors:
        return _divisors(file, theta, factor)
    return RopeConfig("default", theta) if factor == 1.0 else RopeConfig("linear", theta, factor=factor)


def _yarn(file: GGUFFile, theta: float, factor: float) -> RopeConfig:
    for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        # llama.cpp multiplies by the attention factor, transformers replaces its own: a converted file is ambiguous.
        if file.get(f"rope.scaling.{key}", 1.0) != 1.0:
            raise unsupported(f"rope.scaling.{key}", file.get(f"rope.scaling.{key}"), "1.0")
    return RopeConfig(
        "yarn",
        theta,
        factor=factor,
        original_max_positions=file.get("rope.scaling.original_context_length", file.get("context_length")),
        beta_fast=file.get("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=file.get("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=yarn_attention_factor(factor, {}),
    )


def _divisors(file: GGUFFile, theta: float, factor: float) -> RopeConfig:
    """Llama 3.1's scaling. Converters write it as one divisor for each frequency."""
    if factor != 1.0:
        raise unsupported("rope.scaling.factor", factor, f"1.0 beside the tensor {ROPE_DIVISORS}")
    return RopeConfig("divisors", theta, divisors=tuple(file.tensors[ROPE_DIVISORS].data.tolist()))
