"""AdapterTable: the places of one adapter's pieces in the arena, as the kernels look them up.

A table is made when the adapter gets its pages.
"""

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

MAX_ARENA_BYTES = ALIGNMENT << 32  # the numbers of its lines have 32 bits
MODULE_FIELDS = 8
PARTS = 4  # the parts of a module: A, B, gain, shift


@dataclass(frozen=True, slots=True)
class AdapterTable:
    """The table on the device.

    The content begins with a record of each module of the model, all zeros for a module that the adapter does not
    change. Then it has the line of the arena at which each piece begins, as an unsigned number of 32 bits. The indices
    in a record are those of the content. See kernels.py.
    """

    content: Tensor  # [num_modules * 8 + num_pieces] int32
    num_groups: int  # groups of ranks of the module with most

    @property
    def address(self) -> int:
        return self.content.data_ptr()


def make_adapter_table(
    table: ImageTable, page_ids: Sequence[int], sites: Sites, item_bytes: int, device: torch.device
) -> AdapterTable:
    """Makes an adapter's table. Raises ValueError for a module that the model lacks."""
    modules = [module for module in table.modules if module.kind not in (TargetKind.EMBEDDING, TargetKind.NORM)]
    parts = [part for module in modules for part in _parts(module, item_bytes)]
    lines = _lines(list(chain.from_iterable(parts)), page_ids, table.page_bytes)
    counts = [sum(chunk.num_pieces for chunk, _ in part) for part in parts]
    starts = sites.num_modules * MODULE_FIELDS + np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    records = np.zeros((sites.num_modules, MODULE_FIELDS), np.int32)
    for i, module in enumerate(modules):
        at = sites.modules.get((module.site, module.column))
        if at is None:
            raise ValueError(f"{module.name} is not a module of this model")
        records[at] = _record(module, starts[PARTS * i : PARTS * (i + 1)])
    content = torch.from_numpy(np.concatenate((records.reshape(-1), lines))).to(device)
    return AdapterTable(content, -(-max((module.rank for module in modules), default=0) // GROUP))


def _record(module: PackedModule, starts: Array) -> tuple[int, ...]:
    a, b, gain, shift = map(int, starts)
    scaling = int(np.float32(module.scaling).view(np.int32))
    return module.rank, a, b, scaling, bool(module.gain), gain, bool(module.shift), shift


Part = list[tuple[Chunk, int]]  # chunks, and the bytes of a piece of each


def _parts(module: PackedModule, item_bytes: int) -> tuple[Part, Part, Part, Part]:
    """The chunks of A, B, gain and shift: the groups of ranks one after another."""
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
    """The line of the arena at which each piece begins: [num_pieces] int32, the bits of a uint32."""
    page, offset, num_pieces, piece_bytes = np.array(
        [(chunk.page, chunk.offset, chunk.num_pieces, piece_bytes) for chunk, piece_bytes in chunks], dtype=np.int64
    ).reshape(-1, 4).T  # fmt: skip
    begins = np.asarray(page_ids, np.int64)[page] * page_bytes + offset
    # The index of each piece in its chunk.
    index = np.arange(num_pieces.sum()) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    lines = np.repeat(begins, num_pieces) + index * np.repeat(piece_bytes, num_pieces)
    numbers: Array = (lines // ALIGNMENT).astype(np.uint32).view(np.int32)
    return numbers
