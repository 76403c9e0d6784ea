"""Rotary position embedding: the frequencies of each type, one table of cosines and sines, and the rotation.

Everything is float32; frequencies follow transformers' `modeling_rope_utils`, so that models compute the same.
"""

import math

import torch
from torch import Tensor

from ..model_files.config import RopeConfig


def rope_cache(rope: RopeConfig, head_dim: int, max_positions: int) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines of position x frequency, times YaRN's attention factor: each
    [max_positions, head_dim // 2]."""
    frequencies = FREQUENCIES[rope.rope_type](rope, head_dim)
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies
    return angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates (x[i], x[i + head_dim / 2]) by the i-th angle, in the order of GPT-NeoX. Returns a tensor of x's dtype.

    x: [num_tokens, num_heads, head_dim].
    cos, sin: [num_tokens, 1, head_dim // 2] float32.
    """
    first, second = x.float().chunk(2, dim=-1)  # [num_tokens, num_heads, head_dim // 2] each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _default(rope: RopeConfig, head_dim: int) -> Tensor:
    """The frequencies theta ** (-2i / head_dim) of RoFormer (arXiv 2104.09864), section 3.2.2."""
    return 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _linear(rope: RopeConfig, head_dim: int) -> Tensor:
    """Position interpolation (arXiv 2306.15595): it divides positions, and so frequencies, by the factor."""
    return _default(rope, head_dim) / rope.factor


def _divisors(rope: RopeConfig, head_dim: int) -> Tensor:
    """The frequencies, each divided by its own number: llama.cpp's tensor `rope_freqs`."""
    return _default(rope, head_dim) / torch.tensor(rope.divisors)


def _llama3(rope: RopeConfig, head_dim: int) -> Tensor:
    """Llama 3.1's `apply_scaling` (llama-models, reference implementation): it divides the frequencies of long waves by
    the factor, keeps those of short waves, and blends those between by the number of waves in the original context."""
    frequencies = _default(rope, head_dim)
    turns = rope.original_max_positions / (2 * math.pi / frequencies)  # waves in the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * frequencies / rope.factor + blend * frequencies


def _yarn(rope: RopeConfig, head_dim: int) -> Tensor:
    """YaRN, "NTK-by-parts" (arXiv 2309.00071, section 3.2): it keeps dimensions that turn more than beta_fast times in
    the original context, divides those that turn less than beta_slow times by the factor, and puts a ramp between."""
    low, high = _turn_dim(rope, head_dim, rope.beta_fast), _turn_dim(rope, head_dim, rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001  # a ramp without width would divide by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    frequencies = _default(rope, head_dim)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)


def _turn_dim(rope: RopeConfig, head_dim: int, num_turns: float) -> float:
    """The dimension, as a real number, that turns `num_turns` times in the original context (YaRN, appendix A.2)."""
    turns = rope.original_max_positions / (num_turns * 2 * math.pi)
    return head_dim * math.log(turns) / (2 * math.log(rope.theta))


FREQUENCIES = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn, "divisors": _divisors}
