"""ReferenceLoRA: the LoRA operation in plain torch, segment by segment. Tests compare every faster one with it.

All products are summed in float32. Each output is rounded to y's dtype once, after the last adapter of its list.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .device_pool import DevicePool
from .image import Chunk, ImageTable, PackedModule
from .layout import Layout
from .lora import LoRABackend, LoRAMetadata, Norms, Segment
from .norms import NormFinder
from .targets import TargetKind


@dataclass(frozen=True, slots=True)
class GroupWeights:
    """A group of ranks of one module, as views of its pieces in the arena (see layout.py)."""

    width: int  # ranks
    a: tuple[Tensor, ...]  # for each chunk, [pieces, elements of a piece]
    b: tuple[Tensor, ...]

    def matrices(
        self, in_features: int, out_features: int, is_embedding: bool, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """A, [width, in_features], and B, [out_features, width], in float32."""
        a, b = torch.cat(self.a), torch.cat(self.b)
        per_unit = layout.ranks_per_unit(b.itemsize)
        whole_a = a.T if is_embedding else self._whole_a(a, in_features, layout)
        panels = b.view(len(b), self.width // per_unit, layout.panel, per_unit)
        whole_b = panels.transpose(1, 2).reshape(-1, self.width)[:out_features]
        return whole_a.float(), whole_b.float()

    def _whole_a(self, a: Tensor, in_features: int, layout: Layout) -> Tensor:
        lines = a.view(-1, self.width, layout.inputs_per_line(self.width, a.itemsize))
        return lines.transpose(0, 1).flatten(1)[:, :in_features]


@dataclass(frozen=True, slots=True)
class SliceWeights:
    """One module of one adapter."""

    column: int  # first output column in the site
    in_features: int
    out_features: int
    scaling: float
    layout: Layout
    groups: tuple[GroupWeights, ...]
    shift: tuple[Tensor, ...]  # views of pieces; empty: no shift
    gain: tuple[Tensor, ...]
    kind: TargetKind
    rows: tuple[Tensor, ...]  # views of token rows; empty: none
    row_ids: Tensor  # [num_rows] int64, ascending; empty: 0, 1, ...

    def products(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields A, [width, in_features], and B, [out_features, width], of each group of ranks, in float32."""
        is_embedding = self.kind is TargetKind.EMBEDDING
        for group in self.groups:
            yield group.matrices(self.in_features, self.out_features, is_embedding, self.layout)

    def vector(self, pieces: tuple[Tensor, ...]) -> Tensor:
        """The vector over the outputs that the pieces hold: [out_features] float32."""
        return torch.cat(pieces).flatten()[: self.out_features]


SiteWeights = Mapping[int, Sequence[SliceWeights]]  # site -> the slices that the adapter changes


@dataclass(frozen=True, slots=True)
class ReferenceMetadata(LoRAMetadata):
    segments: Sequence[Segment]
    weights: Mapping[str, SiteWeights]  # digest -> site -> slices
    vocab_size: int
    norms: Norms


class ReferenceLoRA(LoRABackend):
    def __init__(self, pool: DevicePool) -> None:
        self._pool = pool
        self._norms = NormFinder(pool)

    def changes_head(self, digest: str) -> bool:
        return self._pool.changes_head(digest)

    def plan(self, segments: Sequence[Segment], adapter_pages: Mapping[str, Sequence[int]]) -> ReferenceMetadata:
        digests = {digest for segment in segments for digest, _ in segment.adapters}
        weights = {digest: self._pool.derive(digest, adapter_pages[digest], self._view_sites) for digest in digests}
        vocab_size = max((self._pool.vocab_size_of(digest) or 0 for digest in digests), default=0)
        return ReferenceMetadata(segments, weights, vocab_size, self._norms.find(segments, adapter_pages))

    def run(self, site: int, x: Tensor, y: Tensor, metadata: LoRAMetadata) -> None:
        if not isinstance(metadata, ReferenceMetadata):
            raise TypeError(f"metadata of another backend: {type(metadata).__name__}")
        for segment in metadata.segments:
            changes = [
                (weights, scale)
                for digest, scale in segment.adapters
                for weights in metadata.weights[digest].get(site, ())
            ]
            if changes:
                _add_changes(x[segment.start : segment.end], y[segment.start : segment.end], changes)

    def embed(self, site: int, token_ids: Tensor, y: Tensor, metadata: LoRAMetadata) -> None:
        if not isinstance(metadata, ReferenceMetadata):
            raise TypeError(f"metadata of another backend: {type(metadata).__name__}")
        for segment in metadata.segments:
            rows = slice(segment.start, segment.end)
            for digest, scale in segment.adapters:
                for weights in metadata.weights[digest].get(site, ()):
                    y[rows] = _embed(token_ids[rows], y[rows], weights, scale)

    def _view_sites(self, table: ImageTable, page_ids: Sequence[int]) -> SiteWeights:
        dtype, layout = self._pool.dtype, table.layout
        sites: dict[int, list[SliceWeights]] = {}
        for module in (module for module in table.modules if module.kind is not TargetKind.NORM):
            groups = tuple(
                GroupWeights(
                    width,
                    a=tuple(
                        self._view(chunk, page_ids, _piece_of_a(module, width, layout, dtype), dtype) for chunk in a
                    ),
                    b=tuple(self._view(chunk, page_ids, layout.panel * width, dtype) for chunk in b),
                )
                for width, a, b in zip(layout.rank_groups(module.rank), module.a, module.b, strict=True)
            )
            weights = SliceWeights(
                module.column,
                module.in_features,
                module.out_features,
                module.scaling,
                layout,
                groups,
                shift=tuple(self._view(chunk, page_ids, layout.panel, torch.float32) for chunk in module.shift),
                gain=tuple(self._view(chunk, page_ids, layout.panel, torch.float32) for chunk in module.gain),
                kind=module.kind,
                rows=tuple(self._view(chunk, page_ids, _row_width(module), dtype) for chunk in module.rows),
                row_ids=torch.tensor(module.row_ids, dtype=torch.int64),
            )
            sites.setdefault(module.site, []).append(weights)
        return sites

    def _view(self, chunk: Chunk, page_ids: Sequence[int], piece: int, dtype: torch.dtype) -> Tensor:
        """A chunk's pieces in the arena: [pieces, elements of a piece]."""
        num_bytes = chunk.num_pieces * piece * dtype.itemsize
        content = self._pool.pages[page_ids[chunk.page], chunk.offset : chunk.offset + num_bytes]
        return content.view(dtype).view(chunk.num_pieces, piece)


def _add_changes(x: Tensor, y: Tensor, changes: Sequence[tuple[SliceWeights, float]]) -> None:
    """Adds changes to y in place. x: [num_tokens, in]. y: [num_tokens, out of the site]."""
    x32, total = x.float(), y.float()
    for weights, scale in changes:
        columns = slice(weights.column, weights.column + weights.out_features)
        for a, b in weights.products():
            total[:, columns] += (x32 @ a.T * (scale * weights.scaling)) @ b.T
        if weights.gain:
            total[:, columns] *= weights.vector(weights.gain)
        if weights.shift:
            total[:, columns] += scale * weights.vector(weights.shift)
        if weights.rows:
            rows = torch.cat(weights.rows).float()
            ids = weights.row_ids if len(weights.row_ids) else slice(len(rows))
            total[:, ids] = x32 @ rows.T
    y.copy_(total)


def _embed(token_ids: Tensor, y: Tensor, weights: SliceWeights, scale: float) -> Tensor:
    """Returns the changed embeddings. token_ids: [num_tokens]. y: [num_tokens, hidden]."""
    total = y.float()
    for a, b in weights.products():
        total += (a.T[token_ids.clamp(max=weights.in_features - 1)] * (scale * weights.scaling)) @ b.T
    if weights.gain:
        total *= weights.vector(weights.gain)
    if weights.rows:
        rows, ids = torch.cat(weights.rows).float(), weights.row_ids
        if not len(ids):
            return rows[token_ids].to(y.dtype)
        at = torch.searchsorted(ids, token_ids).clamp(max=len(ids) - 1)
        total = torch.where((ids[at] == token_ids)[:, None], rows[at], total)
    return total.to(y.dtype)


def _row_width(module: PackedModule) -> int:
    """The elements of a token row."""
    return module.out_features if module.kind is TargetKind.EMBEDDING else module.in_features


def _piece_of_a(module: PackedModule, width: int, layout: Layout, dtype: torch.dtype) -> int:
    """The elements of a piece of A."""
    if module.kind is TargetKind.EMBEDDING:
        return width
    return layout.lines * width * layout.inputs_per_line(width, dtype.itemsize)
