"""Shapes of known models, for measuring kernels without their weights."""

from dataclasses import replace

from blora.engine.model_files.config import ModelConfig, RopeConfig

SMOLLM2_135M = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope=RopeConfig("default", 100000.0),
    max_position_embeddings=8192,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
    sliding_windows=(None,) * 30,
    tie_word_embeddings=True,
    dtype="bfloat16",
)
LLAMA_7B = replace(
    SMOLLM2_135M,
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    rope=RopeConfig("default", 10000.0),
    sliding_windows=(None,) * 32,
    tie_word_embeddings=False,
)
LLAMA_3_8B = replace(
    LLAMA_7B, vocab_size=128256, intermediate_size=14336, num_kv_heads=8, rope=RopeConfig("default", 500000.0)
)
LLAMA_3_70B = replace(
    LLAMA_3_8B,
    hidden_size=8192,
    intermediate_size=28672,
    num_layers=80,
    num_heads=64,
    sliding_windows=(None,) * 80,
)
SHAPES = {
    "smollm2-135m": SMOLLM2_135M,
    "llama-7b": LLAMA_7B,
    "llama-3-8b": LLAMA_3_8B,
    "llama-3-70b": LLAMA_3_70B,
}


def shape_of(name: str) -> ModelConfig:
    if name not in SHAPES:
        raise ValueError(f"shapes: {name!r} is not one of {', '.join(SHAPES)}")
    return SHAPES[name]


def with_layers(config: ModelConfig, num_layers: int) -> ModelConfig:
    """Returns the same model with another number of layers, none with a sliding window."""
    return replace(config, num_layers=num_layers, sliding_windows=(None,) * num_layers)
