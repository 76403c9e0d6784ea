"""CpuLoRA: a step's adapters as the native kernels read them: addresses of every row of A and panel of B.

The change itself is computed inside the base product (`engine/kernels/linear.cpp`), so that both are summed in float
and rounded once. The layouts below are those of `engine/kernels/types.h`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from .checkpoint import Array
from .device_pool import DevicePool
from .image import PANEL, Chunk, ImageTable, PackedModule, group_ranks
from .lora import LoRAMetadata, LoRAPlanner, Segment

SLICE = np.dtype(
    [("a", "u8"), ("b", "u8"), ("column", "i4"), ("out", "i4"), ("rank", "i4"), ("scaling", "f4")], align=True
)
USE = np.dtype(
    [("start", "i4"), ("end", "i4"), ("scale", "f4"), ("unused", "i4"), ("slices", "u8"), ("sites", "u8")], align=True
)
PLAN = np.dtype([("num_uses", "i4"), ("unused", "i4"), ("uses", "u8")], align=True)


@dataclass(frozen=True, slots=True)
class NativeAdapter:
    """Where one adapter's matrices are. The arrays hold addresses of each other: they live and go together."""

    slices: Array  # [num_modules] SLICE, by site
    sites: Array  # [num_sites + 1] int32: first slice of each site
    rows: Array  # addresses of the rows of all A and the panels of all B


@dataclass(frozen=True, slots=True)
class CpuLoRAMetadata(LoRAMetadata):
    plan: Array  # [1] PLAN
    uses: Array  # [num_uses] USE
    adapters: Sequence[NativeAdapter]  # kept alive

    @property
    def address(self) -> int:
        return int(self.plan.ctypes.data)


class CpuLoRA(LoRAPlanner):
    def __init__(self, pool: DevicePool, num_sites: int) -> None:
        self._pool = pool
        self._num_sites = num_sites

    def plan(self, segments: Sequence[Segment], adapter_pages: Mapping[str, Sequence[int]]) -> CpuLoRAMetadata:
        digests = {digest for segment in segments for digest, _ in segment.adapters}
        adapters = {digest: self._pool.derive(digest, adapter_pages[digest], self._locate) for digest in digests}
        addresses = {
            digest: (adapter.slices.ctypes.data, adapter.sites.ctypes.data) for digest, adapter in adapters.items()
        }
        uses = np.array(
            [
                (segment.start, segment.end, scale, 0, *addresses[digest])
                for segment in segments
                for digest, scale in segment.adapters
            ],
            dtype=USE,
        )
        plan = np.array([(len(uses), 0, uses.ctypes.data)], dtype=PLAN)
        return CpuLoRAMetadata(plan, uses, list(adapters.values()))

    def _locate(self, table: ImageTable, page_ids: Sequence[int]) -> NativeAdapter:
        modules = sorted(table.modules, key=lambda module: module.site)
        rows = self._addresses(modules, page_ids)
        slices = np.zeros(len(modules), SLICE)
        at = rows.ctypes.data
        for index, module in enumerate(modules):
            num_panels = -(-module.out_features // PANEL)
            b = at + module.rank * rows.itemsize
            slices[index] = (at, b, module.column, module.out_features, module.rank, module.scaling)
            at = b + len(module.b) * num_panels * rows.itemsize
        counts = np.bincount([module.site for module in modules], minlength=self._num_sites)
        sites = np.concatenate(([0], counts.cumsum())).astype(np.int32)
        return NativeAdapter(slices, sites, rows)

    def _addresses(self, modules: Sequence[PackedModule], page_ids: Sequence[int]) -> Array:
        """The address of each row of A, then of each panel of B, of one module after another."""
        chunks = np.array(list(chain.from_iterable(map(self._chunks_of, modules))), dtype=np.int64)
        page, offset, num_rows, row_bytes = chunks.T
        pages = self._pool.pages
        starts = pages.data_ptr() + np.asarray(page_ids)[page] * pages.shape[1] + offset
        first = np.repeat(num_rows.cumsum() - num_rows, num_rows)
        index = np.arange(num_rows.sum()) - first  # of each row in its chunk
        addresses = np.repeat(starts, num_rows) + index * np.repeat(row_bytes, num_rows)
        return np.asarray(addresses, dtype=np.uint64)

    def _chunks_of(self, module: PackedModule) -> list[tuple[int, int, int, int]]:
        """(page, offset, number of rows, bytes of a row) of the chunks of A, then of B."""
        item_bytes = self._pool.dtype.itemsize

        def located(chunk: Chunk, width: int) -> tuple[int, int, int, int]:
            return chunk.page, chunk.offset, chunk.num_rows, width * item_bytes

        return [located(chunk, module.in_features) for chunk in module.a] + [
            located(chunk, ranks * PANEL)
            for ranks, group in zip(group_ranks(module.rank), module.b, strict=True)
            for chunk in group
        ]
