"""AdapterReport: what an adapter is to a model: what is applied, by how much it changes the model, what it takes.

numpy only, no torch. A refused adapter has a report too, whose problems are those of AdapterRejected.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .adapter_text import AdapterText
from .base_tensors import BaseTensors
from .checkpoint import Checkpoint, read_checkpoint
from .errors import AdapterRejected, AdapterTooLarge
from .image import ImageTable, pack
from .layout import Layout
from .lora_module import LoRAModule
from .targets import TargetModule

LAYERS = ".layers."


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """The change of one module."""

    name: str  # in the Hugging Face model
    rank: int
    scaling: float
    norm: float  # Frobenius norm of scaling * B @ A


@dataclass(frozen=True, slots=True)
class LayerReport:
    """The changes of all modules of one layer together."""

    name: str  # such as "model.layers.3"
    norm: float  # Frobenius norm: the root of the sum of its modules' squares


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """problems: why it is refused, all of them; one without any is loaded. What a refused one lacks is empty or 0."""

    path: str
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    kind: str = ""  # such as "LoRA" or "rsLoRA"
    digest: str = ""  # sha256 over configuration, weights and what the folder says about text
    modules: tuple[ModuleReport, ...] = ()  # in the order of the model
    layers: tuple[LayerReport, ...] = ()
    applied_tensors: tuple[str, ...] = ()  # names in the file
    ignored_tensors: tuple[str, ...] = ()
    num_disk_bytes: int = 0  # of the files that are read
    num_host_bytes: int = 0  # packed, in host memory
    num_device_bytes: int = 0  # in the arena, while resident
    num_pages: int = 0  # of the arena
    vocab_size: int | None = None  # its own, where its tables are longer or shorter than the model's
    text: AdapterText = AdapterText()  # for whoever knows the model's tokenizer; not shown

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
    max_weights: int | None = None,
    layout: Layout = Layout.VECTORS,
) -> AdapterReport:
    """What loading a folder would come to, without loading it. Never raises for what is wrong with the adapter."""
    try:
        checkpoint = read_checkpoint(folder, targets, roots, base, max_weights)
        return report_of(checkpoint, pack(checkpoint, dtype, page_bytes, layout).table)
    except AdapterRejected as error:
        return AdapterReport(error.source, error.problems)
    except AdapterTooLarge as error:
        return AdapterReport(str(folder), (str(error),))


def report_of(checkpoint: Checkpoint, table: ImageTable) -> AdapterReport:
    modules = tuple(
        ModuleReport(module.target.name, module.rank, module.scaling, change_norm(module))
        for module in checkpoint.modules
    )
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
        text=table.text,
    )


def change_norm(module: LoRAModule) -> float:
    """The Frobenius norm of scaling * B @ A, whose square is the sum over (B^T B) * (A A^T): [rank, rank] each, so that
    the product of the size of the base weight is never computed."""
    a, b = module.a.astype(np.float32), module.b.astype(np.float32)
    square = np.sum((b.T @ b) * (a @ a.T), dtype=np.float64)
    return abs(module.scaling) * math.sqrt(max(float(square), 0.0))  # rounding can leave less than nothing


def _by_layer(modules: Iterable[ModuleReport]) -> tuple[LayerReport, ...]:
    squares: dict[str, float] = {}
    for module in modules:
        name = _layer_of(module.name)
        squares[name] = squares.get(name, 0.0) + module.norm**2
    return tuple(LayerReport(name, math.sqrt(square)) for name, square in squares.items())


def _layer_of(module: str) -> str:
    """ "model.layers.3" of "model.layers.3.mlp.up_proj"; what is in no layer is one by itself."""
    before, found, behind = module.partition(LAYERS)
    return f"{before}{found}{behind.partition('.')[0]}" if found else module
