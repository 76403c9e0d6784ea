"""AdapterReport: the tensors of an adapter that a model applies, the size of their change, and the memory they take.

numpy only, no torch. A refused adapter has a report, too; its problems are those of AdapterRejected.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .errors import AdapterTooLarge
from .image import ImageTable, pack
from .layout import Layout
from .lora_module import BaseTensors, LoRAModule
from .peft.checkpoint import Checkpoint, Judgement, judge_checkpoint
from .peft.text import AdapterText
from .shard_cut import ModuleCuts
from .targets import TargetModule

LAYERS = ".layers."


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """The change of one module."""

    name: str  # in the Hugging Face model
    rank: int
    scaling: float
    norm: float  # Frobenius norm of scaling * B @ A
    gain_norm: float = 0.0  # norm of DoRA's gain minus 1, over the outputs
    shift_norm: float = 0.0  # norm of the vector that is added to the outputs: trained biases
    rows_norm: float | None = None  # norm of the difference of rows, or of a norm, from the model's, if known


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The changes of all modules of one layer together."""

    name: str  # such as "model.layers.3"
    norm: float  # Frobenius norm: the root of the sum of the squares of its modules' norms


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """The report on one folder. problems: all reasons why the adapter is refused; without any, it can be loaded. The
    report on a refused adapter holds as much as could be judged: its kind, its tensors, the ranks of modules that fit.
    All other fields are then empty or 0."""

    path: str
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    kind: str = ""  # such as "LoRA" or "rsLoRA"
    digest: str = ""  # sha256 over configuration, weights and the text settings of the folder
    modules: tuple[ModuleReport, ...] = ()  # in the order of the model
    layers: tuple[LayerReport, ...] = ()
    applied_tensors: tuple[str, ...] = ()  # names in the file
    ignored_tensors: tuple[str, ...] = ()
    refused_tensors: tuple[str, ...] = ()  # tensors that do not fit; only of a refused adapter
    num_disk_bytes: int = 0  # size of the files that are read
    num_host_bytes: int = 0  # size in host memory, packed
    num_device_bytes: int = 0  # size in the arena, while resident
    num_pages: int = 0  # pages of the arena, while resident
    vocab_size: int | None = None  # the adapter's own, if its tables are longer or shorter than the model's
    name_changes: tuple[str, ...] = ()  # what was left out of the file's names of tensors, or put before them
    unknown_fields: tuple[str, ...] = ()  # fields of the configuration that PEFT does not know, left out as PEFT does
    text: AdapterText = AdapterText()  # to be checked against the model's tokenizer; not shown

    @property
    def is_refused(self) -> bool:
        return bool(self.problems)


def inspect_adapter(
    folder: Path,
    targets: Sequence[TargetModule],
    dtype: str,
    page_bytes: int,
    roots: Sequence[Path] | None = None,
    base: BaseTensors | None = None,
    max_elements: int | None = None,
    layout: Layout = Layout.CPU,
    shards: Sequence[ModuleCuts] = (),
) -> AdapterReport:
    """Reports the result of loading a folder without loading it. A fault of the adapter is reported, not raised."""
    try:
        judged = judge_checkpoint(folder, targets, roots, base, max_elements)
        if judged.problems or judged.checkpoint is None:
            return _refusal(str(folder), judged)
        return report_of(judged.checkpoint, pack(judged.checkpoint, dtype, page_bytes, layout, shards).table)
    except AdapterTooLarge as error:
        return AdapterReport(str(folder), (str(error),))


def _refusal(path: str, judged: Judgement) -> AdapterReport:
    report = AdapterReport(path, judged.problems, kind=judged.kind)
    known = judged.checkpoint
    if known is None:
        return report
    return replace(
        report,
        modules=tuple(
            ModuleReport(module.target.name, module.rank, module.scaling, change_norm(module))
            for module in known.modules
        ),
        applied_tensors=known.tensor_names,
        ignored_tensors=known.ignored_tensors,
        refused_tensors=known.refused_tensors,
        num_disk_bytes=known.num_bytes,
        name_changes=known.name_changes,
        unknown_fields=known.unknown_fields,
    )


def report_of(checkpoint: Checkpoint, table: ImageTable) -> AdapterReport:
    modules = tuple(map(_report_module, checkpoint.modules))
    return AdapterReport(
        path=checkpoint.path,
        warnings=table.warnings,
        kind=checkpoint.kind,
        digest=checkpoint.digest,
        modules=modules,
        layers=_by_layer(modules),
        applied_tensors=checkpoint.tensor_names,
        ignored_tensors=checkpoint.ignored_tensors,
        num_disk_bytes=checkpoint.num_bytes,
        num_host_bytes=table.num_bytes,
        num_device_bytes=table.num_bytes,
        num_pages=table.num_pages,
        vocab_size=table.vocab_size,
        name_changes=checkpoint.name_changes,
        unknown_fields=checkpoint.unknown_fields,
        text=table.text,
    )


def _report_module(module: LoRAModule) -> ModuleReport:
    return ModuleReport(
        name=module.target.name,
        rank=module.rank,
        scaling=module.scaling,
        norm=change_norm(module),
        gain_norm=0.0 if module.gain is None else float(np.linalg.norm(module.gain - 1)),
        shift_norm=0.0 if module.shift is None else float(np.linalg.norm(module.shift)),
        rows_norm=None if module.rows is None else module.rows.norm,
    )


def change_norm(module: LoRAModule) -> float:
    """Returns the Frobenius norm of scaling * B @ A. Its square is the sum over (B^T B) * (A A^T), [rank, rank] each,
    so that the product, which is as large as the base weight, is never computed."""
    a, b = module.a.astype(np.float32), module.b.astype(np.float32)
    square = np.sum((b.T @ b) * (a @ a.T), dtype=np.float64)
    return abs(module.scaling) * math.sqrt(max(float(square), 0.0))  # rounding can make the sum negative


def _by_layer(modules: Iterable[ModuleReport]) -> tuple[LayerReport, ...]:
    squares: dict[str, float] = {}
    for module in modules:
        name = _layer_of(module.name)
        squares[name] = squares.get(name, 0.0) + module.norm**2
    return tuple(LayerReport(name, math.sqrt(square)) for name, square in squares.items())


def _layer_of(module: str) -> str:
    """Returns "model.layers.3" for "model.layers.3.mlp.up_proj". A module in no layer counts as a layer of its own."""
    before, found, behind = module.partition(LAYERS)
    return f"{before}{found}{behind.partition('.')[0]}" if found else module
