"""AdapterTable: where one adapter's pieces are in the arena, as the kernels look it up; made when it has its pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ..image import Chunk, ImageTable, PackedModule
from ..layout import ALIGNMENT, GROUP, PIECE_WIDTH, Layout
from ..lora_module import Array
from ..targets import TargetKind
from .sites import Sites

MAX_ARENA_BYTES = ALIGNMENT << 32  # whose lines have numbers of 32 bits
MODULE_FIELDS = 8
PARTS = 4  # of a module: A, B, gain, shift


@dataclass(frozen=True, slots=True)
class AdapterTable:
    """content: [num_modules * 8 + num_pieces] int32 on the device: first a record of each module of the model (zeros
    for one that the adapter leaves alone), then the line of the arena that each piece begins at, 32 bits without a
    sign. A record's indices are those of content. See kernels.py."""

    content: Tensor
    num_groups: int  # of ranks, of the module that has most

    @property
    def address(self) -> int:
        return self.content.data_ptr()


def make_adapter_table(
    table: ImageTable, page_ids: Sequence[int], sites: Sites, item_bytes: int, device: torch.device
) -> AdapterTable:
    """Raises ValueError for a module that is none of the model's."""
    modules = [module for module in table.modules if module.kind is not TargetKind.EMBEDDING]
    parts = [part for module in modules for part in _parts(module, item_bytes)]
    lines = _lines(list(chain.from_iterable(parts)), page_ids, table.page_bytes)
    counts = [sum(chunk.num_pieces for chunk, _ in part) for part in parts]
    starts = sites.num_modules * MODULE_FIELDS + np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    records = np.zeros((sites.num_modules, MODULE_FIELDS), np.int32)
    for i, module in enumerate(modules):
        at = sites.modules.get((module.site, module.column))
        if at is None:
            raise ValueError(f"{module.name} is no module of this model")
        records[at] = _record(module, starts[PARTS * i : PARTS * (i + 1)])
    content = torch.from_numpy(np.concatenate((records.reshape(-1), lines))).to(device)
    return AdapterTable(content, -(-max((module.rank for module in modules), default=0) // GROUP))


def _record(module: PackedModule, starts: Array) -> tuple[int, ...]:
    a, b, gain, shift = map(int, starts)
    scaling = int(np.float32(module.scaling).view(np.int32))
    return module.rank, a, b, scaling, bool(module.gain), gain, bool(module.shift), shift


Part = list[tuple[Chunk, int]]  # chunks, and the bytes of a piece of each


def _parts(module: PackedModule, item_bytes: int) -> tuple[Part, Part, Part, Part]:
    """A, B, gain and shift: the pieces of all groups of ranks one after another."""
    widths = Layout.GPU.rank_groups(module.rank)
    a, b = (
        [
            (chunk, width * PIECE_WIDTH * item_bytes)
            for width, group in zip(widths, groups, strict=True)
            for chunk in group
        ]
        for groups in (module.a, module.b)
    )
    gain, shift = ([(chunk, PIECE_WIDTH * 4) for chunk in chunks] for chunks in (module.gain, module.shift))
    return a, b, gain, shift


def _lines(chunks: Part, page_ids: Sequence[int], page_bytes: int) -> Array:
    """[num_pieces] int32, the bits of uint32: the line of the arena that each piece begins at."""
    page, offset, num_pieces, piece_bytes = np.array(
        [(chunk.page, chunk.offset, chunk.num_pieces, piece_bytes) for chunk, piece_bytes in chunks], dtype=np.int64
    ).reshape(-1, 4).T  # fmt: skip
    begins = np.asarray(page_ids, np.int64)[page] * page_bytes + offset
    index = np.arange(num_pieces.sum()) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)  # in its chunk
    lines = np.repeat(begins, num_pieces) + index * np.repeat(piece_bytes, num_pieces)
    numbers: Array = (lines // ALIGNMENT).astype(np.uint32).view(np.int32)
    return numbers
