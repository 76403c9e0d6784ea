"""ModuleCut: the part of a module that one of several shards has, and the cut of an adapter's change to that part.

A module is split by its outputs or by its inputs. In a split by outputs, every shard has all of A and its outputs of B.
In a split by inputs, every shard has its inputs of A and all of B, so that the sum over shards, which the base model
makes of their outputs anyway, is the sum of their changes, too. A gain is applied to every summand, a shift to only
one. numpy only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .lora_module import Array, LoRAModule, TrainedRows
from .targets import TargetKind, TargetModule

Range = tuple[int, int]  # first, and one past the last


@dataclass(frozen=True, slots=True)
class ModuleCut:
    target: TargetModule  # the module as the shard has it
    inputs: Range  # the part's inputs in the whole module
    outputs: tuple[Range, ...]  # the part's outputs in the whole module, range after range; some may occur twice
    has_shift: bool = True  # whether the part is the one summand to which a shift is applied


ModuleCuts = Mapping[str, ModuleCut]  # module name -> its part in one shard


def cut(module: LoRAModule, own: ModuleCut) -> LoRAModule:
    """Returns the change of a whole module, cut to one part. The arrays are views where possible."""
    first, end = own.inputs
    rows = module.rows
    if rows is not None and own.target.kind is TargetKind.HEAD:
        rows = _cut_rows(rows, own.outputs[0], module.target.out_features)
    return replace(
        module,
        target=own.target,
        a=module.a[:, first:end],
        b=_take(module.b, own.outputs),
        shift=_take(module.shift, own.outputs) if module.shift is not None and own.has_shift else None,
        gain=None if module.gain is None else _take(module.gain, own.outputs),
        rows=rows,
    )


def _take(array: Array, ranges: tuple[Range, ...]) -> Array:
    pieces = [array[first:end] for first, end in ranges]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _cut_rows(rows: TrainedRows, tokens: Range, vocab_size: int) -> TrainedRows:
    """Cuts rows to a range of tokens. Tokens behind the model's vocabulary go with its last ones."""
    first, end = tokens
    if not rows.ids:
        return replace(rows, rows=rows.rows[first : None if end == vocab_size else end])
    ids = np.array(rows.ids)
    is_kept = (ids >= first) & ((ids < end) | (end == vocab_size))
    return replace(rows, ids=tuple((ids[is_kept] - first).tolist()), rows=rows.rows[is_kept])
