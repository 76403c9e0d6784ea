"""AdapterImage: an adapter packed for the arena, page by page. numpy only, no torch.

A matrix is cut into the pieces of a Layout, as the kernels of a backend read them. Other pieces are:

- panels of the layout, in float32, for a vector over the outputs (shift and gain in lora_module.py);

- a row for each token: in the A of an embedding the token's ranks of one group, in a table a trained row.

A piece is never divided. Pieces stand in chunks: contiguous, 64-byte aligned, never larger than a page. An adapter's
pages need not be adjacent in the arena, because every chunk is found by its page in the image and its offset in that
page.

For a model in several shards, the image holds a part for each, one after another and all of the same number of pages,
so that one decision about pages holds for all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .errors import AdapterTooLarge
from .layout import ALIGNMENT, Layout
from .lora_module import Array
from .peft.checkpoint import Checkpoint
from .peft.text import AdapterText
from .shard_cut import ModuleCuts, cut
from .targets import TargetKind

LARGEST_PIECE = Layout.CPU.largest_piece(4)  # bytes; every page has to hold at least one
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive pieces of one group of A or of B."""

    page: int  # index in the image
    offset: int  # bytes into the page
    first: int  # index of the first piece in its group
    num_pieces: int


@dataclass(frozen=True, slots=True)
class PackedModule:
    """The places of one module's A [rank, in_features] and B [out_features, rank] in the image."""

    name: str
    site: int
    column: int  # first output column in the site
    in_features: int
    out_features: int
    rank: int
    scaling: float
    a: tuple[tuple[Chunk, ...], ...]  # the chunks of each group of ranks
    b: tuple[tuple[Chunk, ...], ...]
    shift: tuple[Chunk, ...] = ()  # [out_features]; empty if there is none
    gain: tuple[Chunk, ...] = ()  # [out_features]; empty if there is none
    kind: TargetKind = TargetKind.LINEAR
    rows: tuple[Chunk, ...] = ()  # trained rows of a table, or one row that is the weight of a norm
    row_ids: tuple[int, ...] = ()  # token ids of the rows, ascending; empty means 0, 1, ...

    @property
    def end_of_rows(self) -> int:
        """One past the last token that has a row."""
        return self.row_ids[-1] + 1 if self.row_ids else sum(chunk.num_pieces for chunk in self.rows)


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Everything about an adapter but its bytes. It can be sent between processes."""

    digest: str
    dtype: str
    num_pages: int  # pages of each shard
    page_bytes: int
    modules: tuple[PackedModule, ...]  # modules of the only shard, or of the first one
    warnings: tuple[str, ...]
    invocation_tokens: tuple[int, ...] = ()  # an activated LoRA changes a prompt from their last occurrence on
    text: AdapterText = AdapterText()
    is_exclusive: bool = False  # the adapter takes no request scale and no partner
    layout: Layout = Layout.CPU
    vocab_size: int | None = None  # the adapter's own, if its tables are longer or shorter than the model's
    further: tuple[tuple[PackedModule, ...], ...] = ()  # modules of each further shard

    @property
    def num_shards(self) -> int:
        return 1 + len(self.further)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards together."""
        return self.num_shards * self.num_pages * self.page_bytes

    def of_shard(self, index: int) -> "ImageTable":
        """Returns the table of one shard. The shard's pages begin at index * num_pages of the image."""
        if not self.further:
            return self
        return replace(self, modules=(self.modules, *self.further)[index], further=())


@dataclass(frozen=True, slots=True)
class AdapterImage:
    table: ImageTable
    pages: Array  # [num_shards * num_pages, page_bytes] uint8


def pack(
    checkpoint: Checkpoint,
    dtype: str,
    page_bytes: int,
    layout: Layout = Layout.CPU,
    shards: Sequence[ModuleCuts] = (),
) -> AdapterImage:
    """Packs a checkpoint in the model's dtype. shards: the cuts of the modules in each shard, if there are several.
    Raises AdapterTooLarge if a page cannot hold a piece."""
    if not shards:
        return _pack_whole(checkpoint, dtype, page_bytes, layout)
    images = [_pack_whole(_cut_all(checkpoint, cuts), dtype, page_bytes, layout) for cuts in shards]
    num_pages = max(image.table.num_pages for image in images)
    pages = np.zeros((len(images), num_pages, page_bytes), dtype=np.uint8)
    for part, image in zip(pages, images, strict=True):
        part[: len(image.pages)] = image.pages
    further = tuple(image.table.modules for image in images[1:])
    table = replace(images[0].table, num_pages=num_pages, further=further)
    return AdapterImage(table, pages.reshape(-1, page_bytes))


def _cut_all(checkpoint: Checkpoint, cuts: ModuleCuts) -> Checkpoint:
    return replace(checkpoint, modules=tuple(cut(module, cuts[module.target.name]) for module in checkpoint.modules))


def _pack_whole(checkpoint: Checkpoint, dtype: str, page_bytes: int, layout: Layout) -> AdapterImage:
    writer = _PageWriter(page_bytes)
    modules = []
    for module in checkpoint.modules:
        target = module.target
        a, b = _convert(module.a, dtype), _convert(module.b, dtype)
        modules.append(
            PackedModule(
                name=target.name,
                site=target.site,
                column=target.offset,
                in_features=target.in_features,
                out_features=target.out_features,
                rank=module.rank,
                scaling=module.scaling,
                a=tuple(writer.write(piece) for piece in _pieces_of(target.kind, a, layout)),
                b=tuple(writer.write(piece) for piece in _pieces_of_b(b, layout)),
                shift=() if module.shift is None else writer.write(_pieces_of_vector(module.shift, layout)),
                gain=() if module.gain is None else writer.write(_pieces_of_vector(module.gain, layout)),
                kind=target.kind,
                rows=() if module.rows is None else writer.write(_as_bytes(_convert(module.rows.rows, dtype))),
                row_ids=() if module.rows is None else module.rows.ids,
            )
        )
    pages = writer.pages()
    table = ImageTable(
        digest=checkpoint.digest,
        dtype=dtype,
        num_pages=len(pages),
        page_bytes=page_bytes,
        modules=tuple(modules),
        warnings=checkpoint.warnings,
        invocation_tokens=checkpoint.invocation_tokens,
        text=checkpoint.text,
        is_exclusive=checkpoint.is_exclusive,
        layout=layout,
        vocab_size=checkpoint.vocab_size,
    )
    return AdapterImage(table, pages)


def _split(matrix: Array, layout: Layout) -> Iterator[tuple[int, Array]]:
    """matrix: [rank, n]. Yields the width of each group and the group's ranks: [width, n], filled up with zeros."""
    first = 0
    for width in layout.rank_groups(len(matrix)):
        group = np.zeros((width, matrix.shape[1]), matrix.dtype)
        part = matrix[first : first + width]
        group[: len(part)] = part
        yield width, group
        first += width


def _pieces_of(kind: TargetKind, a: Array, layout: Layout) -> Iterator[Array]:
    """a: [rank, in_features]. Yields each group as [pieces, bytes of a piece] uint8."""
    if kind is not TargetKind.EMBEDDING:
        return _pieces_of_a(a, layout)
    return (_as_bytes(group.T) for _, group in _split(a, layout))


def _pieces_of_a(a: Array, layout: Layout) -> Iterator[Array]:
    """a: [rank, in_features]. Yields each group as [pieces, bytes of a piece] uint8."""
    for width, group in _split(a, layout):
        per_line = layout.inputs_per_line(width, a.itemsize)
        num_lines = -(-a.shape[1] // (per_line * layout.lines)) * layout.lines
        padded = np.zeros((width, num_lines * per_line), a.dtype)
        padded[:, : a.shape[1]] = group
        lines = padded.reshape(width, num_lines, per_line).transpose(1, 0, 2)
        yield _as_bytes(lines.reshape(num_lines // layout.lines, -1))


def _pieces_of_b(b: Array, layout: Layout) -> Iterator[Array]:
    """b: [out_features, rank]. Yields each group as [panels, bytes of a panel] uint8."""
    per_unit = layout.ranks_per_unit(b.itemsize)
    num_panels = -(-len(b) // layout.panel)
    padded = np.zeros((num_panels * layout.panel, b.shape[1]), b.dtype)
    padded[: len(b)] = b
    for width, group in _split(padded.T, layout):
        panels = group.reshape(width // per_unit, per_unit, num_panels, layout.panel).transpose(2, 0, 3, 1)
        yield _as_bytes(panels.reshape(num_panels, -1))


def _pieces_of_vector(vector: Array, layout: Layout) -> Array:
    """vector: [out_features]. Returns [panels, bytes of a panel] uint8."""
    padded = np.zeros((-(-len(vector) // layout.panel), layout.panel), "<f4")
    padded.reshape(-1)[: len(vector)] = vector
    return _as_bytes(padded)


def _as_bytes(pieces: Array) -> Array:
    return np.ascontiguousarray(pieces).view(np.uint8)


def _convert(matrix: Array, dtype: str) -> Array:
    """Returns the matrix in elements of dtype, rounded to nearest even; bfloat16 as its bits."""
    match dtype:
        case "float32":
            return matrix.astype("<f4")
        case "float16":
            return matrix.astype("<f2")
        case "bfloat16":
            bits = np.ascontiguousarray(matrix, dtype=np.float32).view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        case _:
            raise ValueError(f"dtype {dtype!r} is not one of {DTYPES}")


class _PageWriter:
    """Fills pages one after another."""

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._pages: list[Array] = []
        self._offset = page_bytes  # of the first free byte in the last page

    def write(self, pieces: Array) -> tuple[Chunk, ...]:
        """Writes pieces and returns their chunks. pieces: [number, bytes of each] uint8."""
        num_pieces, piece_bytes = pieces.shape
        if piece_bytes > self._page_bytes:
            raise AdapterTooLarge(f"a piece of {piece_bytes} bytes does not fit into a page of {self._page_bytes}")
        chunks, first = [], 0
        while first < num_pieces:
            chunk = self._next_chunk(first, num_pieces - first, piece_bytes)
            content = pieces[first : first + chunk.num_pieces].reshape(-1)
            self._pages[chunk.page][chunk.offset : chunk.offset + content.size] = content
            self._offset = chunk.offset + -(-content.size // ALIGNMENT) * ALIGNMENT
            chunks.append(chunk)
            first += chunk.num_pieces
        return tuple(chunks)

    def _next_chunk(self, first: int, num_pieces: int, piece_bytes: int) -> Chunk:
        if self._page_bytes - self._offset < piece_bytes:
            self._pages.append(np.zeros(self._page_bytes, dtype=np.uint8))
            self._offset = 0
        num_fitting = (self._page_bytes - self._offset) // piece_bytes
        return Chunk(len(self._pages) - 1, self._offset, first, min(num_pieces, num_fitting))

    def pages(self) -> Array:
        return np.stack(self._pages) if self._pages else np.zeros((0, self._page_bytes), dtype=np.uint8)
