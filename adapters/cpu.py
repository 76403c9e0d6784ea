"""CpuLoRA: the adapters of a step as the native kernels read them, by the address of every chunk.

The kernels compute the change inside the base product (`engine/kernels/linear.cpp`), so that both are summed in float
and rounded once. The structures below are those of `engine/kernels/types.h`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from .device_pool import DevicePool
from .image import Chunk, ImageTable, PackedModule
from .layout import Layout
from .lora import LoRAMetadata, LoRAPlanner, Norms, Segment, check_segments
from .lora_module import Array
from .norms import NormFinder
from .targets import TargetKind

CHUNK = np.dtype([("at", "u8"), ("first", "i4"), ("count", "i4")], align=True)
SLICE = np.dtype(
    [
        *((part, "u8") for part in ("a", "b", "shift", "gain", "rows", "row_ids")),
        *((field, "i4") for field in ("column", "out", "rank")),
        ("scaling", "f4"),
        ("in", "i4"),
        ("num_rows", "i4"),
    ],
    align=True,
)
USE = np.dtype(
    [("start", "i4"), ("end", "i4"), ("scale", "f4"), ("unused", "i4"), ("slices", "u8"), ("sites", "u8")], align=True
)
PLAN = np.dtype([("num_uses", "i4"), ("has_gain_shift", "i4"), ("uses", "u8")], align=True)
NUM_PARTS = 5  # the addresses of chunks in a SLICE


@dataclass(frozen=True, slots=True)
class NativeAdapter:
    """The places of one adapter's matrices. The arrays hold each other's addresses: they have to live equally long."""

    slices: Array  # [num_modules] SLICE, by site
    sites: Array  # [num_sites + 1] int32: the first slice of each site
    chunks: Array  # [num_chunks] CHUNK: those of all slices
    shapes: Mapping[int, tuple[int, int]]  # site -> inputs of the layer, and outputs that it needs at least
    has_gain_shift: bool  # whether any slice has a gain or a shift
    row_ids: Sequence[Array]  # for each slice, [num_rows] int64
    vocab_size: int  # one past the last token that the adapter has a row for


@dataclass(frozen=True, slots=True)
class CpuLoRAMetadata(LoRAMetadata):
    plan: Array  # [1] PLAN
    uses: Array  # [num_uses] USE
    adapters: Sequence[NativeAdapter]  # kept alive: the uses hold their addresses
    num_tokens: int  # one past the last token with an adapter
    num_sites: int
    dtype: torch.dtype
    vocab_size: int
    norms: Norms

    def num_inputs(self, site: int) -> int:
        """The inputs of a site's layer, from the adapters that change it; 0 if none does."""
        return max((adapter.shapes[site][0] for adapter in self.adapters if site in adapter.shapes), default=0)

    @property
    def address(self) -> int:
        return int(self.plan.ctypes.data)


def _parts(module: PackedModule) -> tuple[Sequence[Chunk], ...]:
    """The chunks of each part of a SLICE: the groups of ranks one after another."""
    return (
        list(chain.from_iterable(module.a)),
        list(chain.from_iterable(module.b)),
        module.shift,
        module.gain,
        module.rows,
    )


def _facts(module: PackedModule, ids: Array) -> tuple[int | float, ...]:
    """The fields of a SLICE after the addresses of its chunks."""
    num_rows = len(ids) or module.end_of_rows
    address = ids.ctypes.data if len(ids) else 0
    sizes = (module.column, module.out_features, module.rank)
    return (address, *sizes, module.scaling, module.in_features, num_rows)


class CpuLoRA(LoRAPlanner):
    def __init__(self, pool: DevicePool, num_sites: int) -> None:
        """Raises ValueError for a pool in another layout than the kernels read."""
        if pool.layout is not Layout.CPU:
            raise ValueError(f"the pool holds weights in the layout {pool.layout}, not {Layout.CPU}")
        self._pool = pool
        self._norms = NormFinder(pool)
        self._num_sites = num_sites

    def changes_head(self, digest: str) -> bool:
        return self._pool.changes_head(digest)

    def plan(self, segments: Sequence[Segment], adapter_pages: Mapping[str, Sequence[int]]) -> CpuLoRAMetadata:
        """Raises ValueError for segments that overlap or are out of order, and for pages outside the arena."""
        check_segments(segments)
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
        has_gain_shift = any(adapter.has_gain_shift for adapter in adapters.values())
        plan = np.array([(len(uses), has_gain_shift, uses.ctypes.data)], dtype=PLAN)
        num_tokens = max((segment.end for segment in segments), default=0)
        return CpuLoRAMetadata(
            plan=plan,
            uses=uses,
            adapters=list(adapters.values()),
            num_tokens=num_tokens,
            num_sites=self._num_sites,
            dtype=self._pool.dtype,
            vocab_size=max((adapter.vocab_size for adapter in adapters.values()), default=0),
            norms=self._norms.find(segments, adapter_pages),
        )

    def _locate(self, table: ImageTable, page_ids: Sequence[int]) -> NativeAdapter:
        num_pages = len(self._pool.pages)
        if len(page_ids) != table.num_pages or not all(page in range(num_pages) for page in page_ids):
            raise ValueError(f"pages {page_ids} are not {table.num_pages} of the arena's {num_pages}")
        if getattr(torch, table.dtype) != self._pool.dtype:
            raise ValueError(f"the adapter's weights are {table.dtype}, the pool's {self._pool.dtype}")
        linear = (module for module in table.modules if module.kind is not TargetKind.NORM)
        modules = sorted(linear, key=lambda module: module.site)
        parts = [part for module in modules for part in _parts(module)]
        chunks = self._place(list(chain.from_iterable(parts)), page_ids)
        ends = np.cumsum([len(part) for part in parts])
        starts = [
            chunks.ctypes.data + int(end - len(part)) * chunks.itemsize if part else 0
            for part, end in zip(parts, ends, strict=True)
        ]
        row_ids = [np.array(module.row_ids, dtype=np.int64) for module in modules]
        facts = [_facts(module, ids) for module, ids in zip(modules, row_ids, strict=True)]
        slices = np.array(
            [(*starts[NUM_PARTS * i : NUM_PARTS * (i + 1)], *fact) for i, fact in enumerate(facts)], dtype=SLICE
        )
        counts = np.bincount([module.site for module in modules], minlength=self._num_sites)
        sites = np.concatenate(([0], counts.cumsum())).astype(np.int32)
        shapes: dict[int, tuple[int, int]] = {}
        for module in modules:
            end = max(module.column + module.out_features, shapes.get(module.site, (0, 0))[1])
            shapes[module.site] = (module.in_features, end)
        has_gain_shift = any(module.shift or module.gain for module in modules)
        vocab_size = max((module.end_of_rows for module in modules), default=0)
        return NativeAdapter(slices, sites, chunks, shapes, has_gain_shift, row_ids, vocab_size)

    def _place(self, chunks: Sequence[Chunk], page_ids: Sequence[int]) -> Array:
        """The chunks with their addresses in the arena: [num_chunks] CHUNK."""
        page, offset, first, count = np.array(
            [(chunk.page, chunk.offset, chunk.first, chunk.num_pieces) for chunk in chunks], dtype=np.int64
        ).reshape(-1, 4).T  # fmt: skip
        pages = self._pool.pages
        placed = np.zeros(len(chunks), CHUNK)
        placed["at"] = pages.data_ptr() + np.asarray(page_ids)[page] * pages.shape[1] + offset
        placed["first"], placed["count"] = first, count
        return placed
