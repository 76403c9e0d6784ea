"""The fields of an `adapter_config.json`: those that blora serves, those without influence, and all others.

PEFT leaves out a field that it does not know, so such a field is no part of an adapter's meaning: trainers note things
of their own there. Only a PEFT newer than the newest one known here may know more fields.
"""

import re
from collections.abc import Mapping
from typing import Any

from .misfits import shown

NEWEST_PEFT = (0, 21, 2)  # whose fields are all in the three sets below; a test compares them

# Fields without influence on the adapter's change. The fields of an initialisation are judged by init_lora_weights.
# fan_in_fan_out concerns Conv1D, and PEFT takes it back on the linear layers of our models. merge_weights was in the
# first versions of PEFT only.
HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "loftq_config",
        "lora_ga_config",
        "lora_dropout",
        "megatron_core",
        "merge_weights",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
SERVED = frozenset(
    {
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
        "alora_invocation_tokens",
        "bias",
        "lora_bias",
        "use_dora",
        "modules_to_save",
        "trainable_token_indices",
        "ensure_weight_tying",
    }
)
# Fields of PEFT, of any of its versions, whose meaning is not served. enable_lora was in its first versions only, and
# the invocation of an activated LoRA as text in the versions of its authors.
NOT_SERVED = frozenset(
    {
        "alora_invocation_string",
        "arrow_config",
        "enable_lora",
        "invocation_string",
        "kasa_config",
        "layer_replication",
        "megatron_config",
        "monteclora_config",
        "target_parameters",
        "use_bdlora",
        "use_qalora",
        "velora_config",
    }
)
KNOWN = HARMLESS | SERVED | NOT_SERVED
MLX = frozenset({"lora_parameters", "fine_tune_type"})  # fields of a configuration of mlx-lm


def unknown_fields(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names that are none of PEFT's, which it leaves out."""
    return tuple(shown(name) for name in fields if name not in KNOWN)


def unserved_fields(fields: Mapping[str, Any]) -> list[str]:
    """Returns a problem for each field that asks for what is not served."""
    is_newer = _is_newer(fields.get("peft_version"))
    problems = []
    for name, value in fields.items():
        if name in SERVED or name in HARMLESS or _is_default(value):
            continue
        if name in NOT_SERVED:
            problems.append(f"{name}: {value!r:.140} is not served")
        elif is_newer:
            newest = ".".join(map(str, NEWEST_PEFT))
            reason = f"PEFT {fields['peft_version']!r:.40} may know this field, the newest known here is {newest}"
            problems.append(f"{shown(name)}: {value!r:.140} is not served: {reason}")
    return problems


def _is_default(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})  # 0 is a number, and may mean something


def _is_newer(version: Any) -> bool:
    """Whether PEFT may be newer than the newest known one. Old versions of PEFT do not
    write theirs."""
    if version is None:
        return False
    match = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", version) if isinstance(version, str) else None
    return match is None or tuple(int(part or 0) for part in match.groups()) > NEWEST_PEFT
