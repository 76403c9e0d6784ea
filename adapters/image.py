"""AdapterImage: an adapter packed for the arena, page by page. numpy only, no torch.

Matrices are cut into chunks: contiguous runs of rows of A or B, 64-byte aligned, never larger than a page. An adapter's
pages need not be adjacent in the arena, because every chunk is found by (page of the image, offset in it).
"""

from dataclasses import dataclass

import numpy as np

from .checkpoint import Array, Checkpoint
from .errors import AdapterTooLarge

ALIGNMENT = 64  # bytes
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a matrix, stored row after row."""

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
    b: tuple[Chunk, ...]


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
    """Packs a checkpoint. dtype: the model's. Raises AdapterTooLarge when a page cannot hold one row of a matrix."""
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
                b=writer.write(_to_bytes(module.b, dtype)),
            )
        )
    pages = writer.pages()
    table = ImageTable(checkpoint.digest, dtype, len(pages), page_bytes, tuple(modules), checkpoint.warnings)
    return AdapterImage(table, pages)


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
        """Stores a matrix given as [rows, row bytes] uint8."""
        num_rows, row_bytes = rows.shape
        if row_bytes > self._page_bytes:
            raise AdapterTooLarge(f"a matrix row of {row_bytes} bytes does not fit into a page of {self._page_bytes}")
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
