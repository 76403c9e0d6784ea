"""Cause: the likely reason why a file's tensors do not fit the model. A guess for a message; decides nothing."""

import re
from collections.abc import Collection, Mapping, Sequence

from ..lora_module import Array
from ..targets import TargetModule
from .foreign import kind_of_tensors
from .misfits import FEW, Misfits, shown
from .trained_names import cores, way_to

LAYER = re.compile(r"\blayers\.(\d+)\.")


def likely_cause(
    misfits: Misfits,
    tensors: Mapping[str, Array],
    adapters: Collection[str],
    targets: Sequence[TargetModule],
    base_model: str,
) -> str | None:
    """tensors: by their names in the file. adapters: the adapters in those names; "" is one without a name. base_model:
    the name in the configuration, or ""."""
    num_empty = sum(not tensor.size for tensor in tensors.values())
    if not tensors:
        return "the file has no tensors"
    if num_empty:
        return (
            f"{num_empty} tensors are empty, as DeepSpeed ZeRO-3 and FSDP leave them: gather the parameters before"
            " saving (stage3_gather_16bit_weights_on_model_save)"
        )
    if misfits.doubles and len(adapters) > 1:
        named = ", ".join(shown(name) or "one without a name" for name in sorted(adapters))
        return f"the file holds several adapters: {named}; save each one alone"
    if len(misfits.misshapen) > FEW and all(misfit.has_other_rank for misfit in misfits.misshapen):
        return "the tensors have another rank than adapter_config.json says"
    kind = kind_of_tensors(tensors, misfits.misplaced)
    if kind is not None:
        return kind
    return _other_model(misfits, targets, base_model)


def _other_model(misfits: Misfits, targets: Sequence[TargetModule], base_model: str) -> str | None:
    trained = f": adapter_config.json names {shown(base_model)!r}" if base_model else ""
    by_core = cores(target.name for target in targets)
    ways = {way_to(name, by_core) for name in misfits.misplaced}
    if len(ways) == 1 and (way := ways.pop()):
        return f"the file has modules of this model's names below {shown(way)!r}, which is not known here{trained}"
    last, own_last = _last_layer(misfits.misplaced), _last_layer([f"{target.name}." for target in targets])
    if last > own_last:
        return f"the adapter has layers up to {last}, the model up to {own_last}; it is of another model{trained}"
    if max(len(misfits.misplaced), len(misfits.misshapen)) > FEW:
        return f"the adapter is of another model{trained}"
    return None


def _last_layer(names: Collection[str]) -> int:
    return max((int(match[1]) for name in names if (match := LAYER.search(name))), default=0)
