"""ReferenceLoRA: the LoRA operation in plain torch, one segment after another. The oracle of every faster one.

All products are summed in float32 and each output is rounded to y's type once, after the last adapter of its list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .device_pool import DevicePool
from .image import PANEL, Chunk, ImageTable, group_ranks
from .lora import LoRABackend, LoRAMetadata, Segment


@dataclass(frozen=True, slots=True)
class SliceWeights:
    """One module's matrices as they stand in the arena."""

    column: int  # first output column in the site
    out_features: int
    scaling: float
    a: tuple[Tensor, ...]  # each [some of the rank rows, in_features]; together [rank, in_features]
    b: tuple[tuple[Tensor, ...], ...]  # of each group of ranks, each [some panels, ranks of the group, 16]


SiteWeights = Mapping[int, Sequence[SliceWeights]]  # site -> slices that the adapter changes


@dataclass(frozen=True, slots=True)
class ReferenceMetadata(LoRAMetadata):
    segments: Sequence[Segment]
    weights: Mapping[str, SiteWeights]  # digest -> site -> slices


class ReferenceLoRA(LoRABackend):
    def __init__(self, pool: DevicePool) -> None:
        self._pool = pool

    def plan(self, segments: Sequence[Segment], adapter_pages: Mapping[str, Sequence[int]]) -> ReferenceMetadata:
        digests = {digest for segment in segments for digest, _ in segment.adapters}
        weights = {digest: self._pool.derive(digest, adapter_pages[digest], self._view_sites) for digest in digests}
        return ReferenceMetadata(segments, weights)

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

    def _view_sites(self, table: ImageTable, page_ids: Sequence[int]) -> SiteWeights:
        sites: dict[int, list[SliceWeights]] = {}
        for module in table.modules:
            a = tuple(self._view(chunk, page_ids, module.in_features) for chunk in module.a)
            b = tuple(
                tuple(self._view(chunk, page_ids, ranks * PANEL).view(-1, ranks, PANEL) for chunk in group)
                for ranks, group in zip(group_ranks(module.rank), module.b, strict=True)
            )
            weights = SliceWeights(module.column, module.out_features, module.scaling, a, b)
            sites.setdefault(module.site, []).append(weights)
        return sites

    def _view(self, chunk: Chunk, page_ids: Sequence[int], width: int) -> Tensor:
        dtype = self._pool.dtype
        num_bytes = chunk.num_rows * width * dtype.itemsize
        content = self._pool.pages[page_ids[chunk.page], chunk.offset : chunk.offset + num_bytes]
        return content.view(dtype).view(chunk.num_rows, width)


def _add_changes(x: Tensor, y: Tensor, changes: Sequence[tuple[SliceWeights, float]]) -> None:
    """x: [num_tokens, in], y: [num_tokens, out of the site], changed in place."""
    x32, total = x.float(), y.float()
    for weights, scale in changes:
        low = torch.cat([x32 @ a.float().T for a in weights.a], dim=1)  # [num_tokens, rank]
        low *= scale * weights.scaling
        first_rank = 0
        for group in weights.b:
            b = torch.cat(list(group)).float()  # [panels, ranks, 16]
            columns = b.transpose(0, 1).flatten(1)[:, : weights.out_features]  # [ranks, out_features]
            change = low[:, first_rank : first_rank + len(columns)] @ columns
            total[:, weights.column : weights.column + weights.out_features] += change
            first_rank += len(columns)
    y.copy_(total)  # no copy where y is float32 already: then total is y
