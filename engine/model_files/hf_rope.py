"""Reads the rotary embedding from a config.json: `rope_parameters` (transformers 5), or the older `rope_theta` and
`rope_scaling`. The formulas are in `rope.py`."""

import math
from collections.abc import Mapping
from typing import Any

from .config import RopeConfig, UnsupportedModel, unsupported

Fields = Mapping[str, Any]


def rope_config(fields: Fields) -> RopeConfig:
    """The rotary embedding of a config.json's fields. Raises UnsupportedModel for a type that is not in ROPE_TYPES."""
    rope = _parameters(fields)
    rope_type = _rope_type(rope)
    theta = float(rope.get("rope_theta") or fields.get("rope_theta") or 10000.0)
    if rope_type not in ROPE_TYPES:
        raise unsupported("rope type", rope_type, ", ".join(ROPE_TYPES))
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise unsupported("partial_rotary_factor", rope["partial_rotary_factor"], "1.0")
    return ROPE_TYPES[rope_type](theta, rope, fields)


def extended_length(fields: Fields) -> int:
    """The number of positions that the model serves: the stated number, or YaRN's extension of it. Users who follow a
    model card add only YaRN's parameters, and leave `max_position_embeddings` at the length of training."""
    stated = int(fields["max_position_embeddings"])
    if _rope_type(_parameters(fields)) != "yarn":
        return stated
    rope = rope_config(fields)
    return max(stated, int(rope.original_max_positions * rope.factor))


def _parameters(fields: Fields) -> Fields:
    """The parameters of the rotary embedding. `rope_scaling` comes first, as in transformers."""
    parameters: Fields = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UnsupportedModel(f"rope_parameters differ by layer type ({', '.join(parameters)}); one set is supported")
    return parameters


def _rope_type(rope: Fields) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _default(theta: float, _rope: Fields, _fields: Fields) -> RopeConfig:
    return RopeConfig("default", theta)


def _linear(theta: float, rope: Fields, _fields: Fields) -> RopeConfig:
    return RopeConfig("linear", theta, factor=_number(rope, "factor"))


def _llama3(theta: float, rope: Fields, fields: Fields) -> RopeConfig:
    return RopeConfig(
        "llama3",
        theta,
        factor=_number(rope, "factor"),
        original_max_positions=_original_max_positions(rope, fields),
        low_freq_factor=_number(rope, "low_freq_factor"),
        high_freq_factor=_number(rope, "high_freq_factor"),
    )


def _yarn(theta: float, rope: Fields, fields: Fields) -> RopeConfig:
    original = _original_max_positions(rope, fields)
    factor = _number(rope, "factor", fields["max_position_embeddings"] / original)
    return RopeConfig(
        "yarn",
        theta,
        factor=factor,
        original_max_positions=original,
        beta_fast=_number(rope, "beta_fast", 32.0),
        beta_slow=_number(rope, "beta_slow", 1.0),
        truncate=bool(rope.get("truncate", True)),
        attention_factor=_number(rope, "attention_factor", yarn_attention_factor(factor, rope)),
    )


ROPE_TYPES = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}


def yarn_attention_factor(factor: float, rope: Fields) -> float:
    """0.1 ln(factor) + 1 (YaRN, arXiv 2309.00071, section 3.4), or DeepSeek's ratio if both mscales are set."""
    mscale, mscale_all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return _mscale(factor, mscale) / _mscale(factor, mscale_all_dim)
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _original_max_positions(rope: Fields, fields: Fields) -> int:
    name = "original_max_position_embeddings"
    return int(fields.get(name) or rope.get(name) or fields["max_position_embeddings"])


def _number(rope: Fields, name: str, default: float | None = None) -> float:
    value = rope.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UnsupportedModel(f"rope parameter {name}: {value!r} is not a number")
    return float(value)
