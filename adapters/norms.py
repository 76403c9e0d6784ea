"""Norms: the weights of norms that adapters have trained. Such a weight takes the place of the model's for the tokens
of its adapter only.

A backend norms all tokens with the model's weight first, and then the tokens of each NormUse again with the adapter's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .device_pool import DevicePool
from .image import ImageTable
from .lora import Norms, NormUse, Segment
from .targets import TargetKind


@dataclass(frozen=True, slots=True)
class NormFinder:
    """Finds the norms of a step's adapters in the pages of the arena."""

    pool: DevicePool

    def find(self, segments: Sequence[Segment], adapter_pages: Mapping[str, Sequence[int]]) -> Norms:
        uses: dict[int, list[NormUse]] = {}
        for segment in segments:
            for digest, _ in segment.adapters:
                for site, weight in self._weights(digest, adapter_pages).items():
                    uses.setdefault(site, []).append(NormUse(segment.start, segment.end, weight))
        return Norms(uses)

    def _weights(self, digest: str, adapter_pages: Mapping[str, Sequence[int]]) -> Mapping[int, Tensor]:
        if not self.pool.changes_norms(digest):
            return {}
        return self.pool.derive(digest, adapter_pages[digest], self._view)

    def _view(self, table: ImageTable, page_ids: Sequence[int]) -> dict[int, Tensor]:
        """Returns the weight of each norm, by site: a view of the arena, [width]."""
        norms = [module for module in table.modules if module.kind is TargetKind.NORM]
        weights = {}
        for module in norms:
            (chunk,) = module.rows
            end = chunk.offset + module.in_features * self.pool.dtype.itemsize
            weights[module.site] = self.pool.pages[page_ids[chunk.page], chunk.offset : end].view(self.pool.dtype)
        return weights
