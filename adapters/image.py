"""AdapterImage: an adapter packed for the arena, page by page. numpy only, no torch.

A stands row after row. B stands in groups of up to 16 ranks, and in a group by panels of 16 outputs, each
[ranks of the group, 16], so that a kernel reads neighbouring outputs together and a rank costs its own bytes only; the
last panel is filled up with zeros. Rows of A and panels of B are cut into chunks: contiguous, 64-byte aligned, never
larger than a page. An adapter's pages need not be adjacent in the arena, because every chunk is found by (page of the
image, offset in it).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .checkpoint import Array, Checkpoint
from .errors import AdapterTooLarge

ALIGNMENT = 64  # bytes
PANEL = 16  # outputs
RANK_GROUP = 16  # ranks
WIDEST_PANEL = PANEL * RANK_GROUP  # elements; a page has to hold one
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of A, or panels of one group of B, one after another."""

    page: int  # index in the image
    offset: int  # bytes into the page
    first_row: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class PackedModule:
    """Where one module's A [rank, in_features] and B [out_features, rank] stand in the image."""

    name: str
    site: int
    column: int  # first output column in the site
    in_features: int
    out_features: int
    rank: int
    scaling: float
    a: tuple[Chunk, ...]
    b: tuple[tuple[Chunk, ...], ...]  # of each group of ranks


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Everything about an adapter but its bytes; fit to be sent between processes."""

    digest: str
    dtype: str
    num_pages: int
    page_bytes: int
    modules: tuple[PackedModule, ...]
    warnings: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        return self.num_pages * self.page_bytes


@dataclass(frozen=True, slots=True)
class AdapterImage:
    table: ImageTable
    pages: Array  # [num_pages, page_bytes] uint8


def pack(checkpoint: Checkpoint, dtype: str, page_bytes: int) -> AdapterImage:
    """Packs a checkpoint in the model's dtype. Raises AdapterTooLarge where a page holds no row or panel."""
    writer = _PageWriter(page_bytes)
    modules = []
    for module in checkpoint.modules:
        target = module.target
        modules.append(
            PackedModule(
                name=target.name,
                site=target.site,
                column=target.offset,
                in_features=target.in_features,
                out_features=target.out_features,
                rank=module.rank,
                scaling=module.scaling,
                a=writer.write(_to_bytes(module.a, dtype)),
                b=tuple(writer.write(_to_bytes(group, dtype)) for group in _panels(module.b)),
            )
        )
    pages = writer.pages()
    table = ImageTable(checkpoint.digest, dtype, len(pages), page_bytes, tuple(modules), checkpoint.warnings)
    return AdapterImage(table, pages)


def group_ranks(rank: int) -> list[int]:
    """The ranks of each group."""
    return [min(RANK_GROUP, rank - first) for first in range(0, rank, RANK_GROUP)]


def _panels(b: Array) -> Iterator[Array]:
    """b: [out_features, rank]. Yields each group of ranks as [number of panels, ranks of the group * 16]."""
    out_features, rank = b.shape
    num_panels = -(-out_features // PANEL)
    padded = np.zeros((num_panels * PANEL, rank), b.dtype)
    padded[:out_features] = b
    for first in range(0, rank, RANK_GROUP):
        group = padded[:, first : first + RANK_GROUP].reshape(num_panels, PANEL, -1)
        yield group.transpose(0, 2, 1).reshape(num_panels, -1)


def _to_bytes(matrix: Array, dtype: str) -> Array:
    """[rows, row bytes] uint8, rounded to nearest even."""
    match dtype:
        case "float32":
            converted = matrix.astype("<f4")
        case "float16":
            converted = matrix.astype("<f2")
        case "bfloat16":
            bits = np.ascontiguousarray(matrix, dtype=np.float32).view(np.uint32)
            converted = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        case _:
            raise ValueError(f"dtype {dtype!r} is not one of {DTYPES}")
    return np.ascontiguousarray(converted).view(np.uint8).reshape(matrix.shape[0], -1)


class _PageWriter:
    """Fills pages one after another."""

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._pages: list[Array] = []
        self._offset = page_bytes  # in the last page

    def write(self, rows: Array) -> tuple[Chunk, ...]:
        """Stores pieces that are not to be divided, given as [pieces, bytes of each] uint8."""
        num_rows, row_bytes = rows.shape
        if row_bytes > self._page_bytes:
            raise AdapterTooLarge(f"a piece of {row_bytes} bytes does not fit into a page of {self._page_bytes}")
        chunks, first = [], 0
        while first < num_rows:
            chunk = self._next_chunk(first, num_rows - first, row_bytes)
            content = rows[first : first + chunk.num_rows].reshape(-1)
            self._pages[chunk.page][chunk.offset : chunk.offset + content.size] = content
            self._offset = chunk.offset + -(-content.size // ALIGNMENT) * ALIGNMENT
            chunks.append(chunk)
            first += chunk.num_rows
        return tuple(chunks)

    def _next_chunk(self, first: int, num_rows: int, row_bytes: int) -> Chunk:
        if self._page_bytes - self._offset < row_bytes:
            self._pages.append(np.zeros(self._page_bytes, dtype=np.uint8))
            self._offset = 0
        num_fitting = (self._page_bytes - self._offset) // row_bytes
        return Chunk(len(self._pages) - 1, self._offset, first, min(num_rows, num_fitting))

    def pages(self) -> Array:
        return np.stack(self._pages)
