"""Misfits of a checkpoint: the tensors that do not fit the model, told in a few lines, and their likely cause."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from blora.adapters.peft.misfits import lines_of
from blora.adapters.peft.trained_names import WRAPPERS, cores, split_stem, stem_changes, wrapper_changes

Shape = tuple[int, ...]

# A pattern that an unused tensor's name contains, and what its checkpoint is. The first match counts.
KINDS: tuple[tuple[str, str], ...] = (
    (r"\.lora_[AB]\b|\.base_layer\.", "the model was saved with an adapter in it: merge it, or save the two apart"),
    (r"\.(qweight|qzeros|g_idx|scales)$", "the weights are quantised by GPTQ or AWQ, which is not served"),
    (r"weight_scale|weight_packed|input_scale", "the weights are quantised to FP8 or integers, which is not served"),
    (r"\.absmax$|quant_map|quant_state", "the weights are quantised by bitsandbytes, which is not served"),
    (r"\b(qkv_proj|gate_up_proj|query_key_value|c_attn)\b", "its projections are fused: the model is of another kind"),
    (r"\b(experts|block_sparse_moe)\b", "the model is a mixture of experts, which is not served"),
    (r"\b(vision|visual|audio|multi_modal)\w*\b", "the model is multimodal, which is not served"),
)
LAYER = re.compile(r"\blayers\.(\d+)\.")


def problems_of(wanted: Mapping[str, Shape], found: Mapping[str, Shape], unused: Collection[str]) -> list[str]:
    """Returns what does not fit, the likely cause first. wanted: shapes by name. found: the checkpoint's. unused: names
    in the checkpoint that are not wanted."""
    missing = sorted(wanted.keys() - found.keys())
    misshapen = [
        f"shape of {name}: {list(found[name])}, expected {list(wanted[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    cause = _likely_cause(missing, sorted(unused), wanted, found)
    return [
        *([] if cause is None else [f"likely cause: {cause}"]),
        *lines_of(missing, "missing: {}", "tensors are missing"),
        *lines_of(sorted(unused), "unused: {}", "tensors of the checkpoint are unused"),
        *lines_of(misshapen, "{}", "tensors have other shapes"),
    ]


def _likely_cause(
    missing: Sequence[str], unused: Sequence[str], wanted: Mapping[str, Shape], found: Mapping[str, Shape]
) -> str | None:
    num_empty = sum(0 in found[name] for name in found)
    if num_empty:
        return f"{num_empty} tensors are empty, as DeepSpeed ZeRO-3 leaves them: gather the weights before saving"
    by_core = cores(missing)
    changes = Counter(change for name in unused for change in _changes(name, by_core))
    if changes:
        told = ", and ".join(f"{change} {number} names" for change, number in changes.items())
        return f"the names are those of a part or a wrapper of the model. They fit once {told}"
    kind = next((kind for pattern, kind in KINDS if any(re.search(pattern, name) for name in unused)), None)
    return kind or _other_depth(wanted, found)


def _changes(name: str, by_core: Mapping[str, str]) -> Iterator[str]:
    """Yields what makes a missing tensor's name of the name."""
    words = name.split(".")
    stem, module = split_stem([word for word in words if word not in WRAPPERS], by_core)
    if module is not None:
        yield from wrapper_changes(words)
        yield from stem_changes(stem, module)


def _other_depth(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> str | None:
    depth, own = _num_layers(found), _num_layers(wanted)
    return None if depth == own else f"config.json tells of {own} layers, and the checkpoint has {depth}"


def _num_layers(names: Collection[str]) -> int:
    return max((int(match[1]) + 1 for name in names if (match := LAYER.search(name))), default=0)
