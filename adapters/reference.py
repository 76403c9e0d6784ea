"""ReferenceLoRA: the LoRA operation in plain torch, one segment after another. The oracle of every faster one.

All products are summed in float32 and each output is rounded to y's type once, after the last adapter of its list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .device_pool import DevicePool, SiteWeights, SliceWeights
from .lora import LoRABackend, LoRAMetadata, Segment


@dataclass(frozen=True, slots=True)
class ReferenceMetadata(LoRAMetadata):
    segments: Sequence[Segment]
    weights: Mapping[str, SiteWeights]  # digest -> site -> slices


class ReferenceLoRA(LoRABackend):
    def __init__(self, pool: DevicePool) -> None:
        self._pool = pool

    def plan(self, segments: Sequence[Segment], adapter_pages: Mapping[str, Sequence[int]]) -> ReferenceMetadata:
        digests = {digest for segment in segments for digest, _ in segment.adapters}
        weights = {digest: self._pool.weights(digest, adapter_pages[digest]) for digest in digests}
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


def _add_changes(x: Tensor, y: Tensor, changes: Sequence[tuple[SliceWeights, float]]) -> None:
    """x: [num_tokens, in], y: [num_tokens, out of the site], changed in place."""
    x32, total = x.float(), y.float()
    for weights, scale in changes:
        low = torch.cat([x32 @ a.float().T for a in weights.a], dim=1)  # [num_tokens, rank]
        low *= scale * weights.scaling
        column = weights.column
        for b in weights.b:
            total[:, column : column + len(b)] += low @ b.float().T
            column += len(b)
    y.copy_(total)  # no copy where y is float32 already: then total is y
