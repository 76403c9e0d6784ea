"""DevicePool: adapter weights in the arena. Copies page images in and gives views of the matrices out.

Owns the host cache (the images) and the views. Which pages an adapter has is told to it at every call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .image import Chunk, ImageTable


@dataclass(frozen=True, slots=True)
class SliceWeights:
    """One module's matrices as they stand in the arena, in chunks of rows."""

    column: int  # first output column in the site
    rank: int
    scaling: float
    a: tuple[Tensor, ...]  # each [some of the rank rows, in_features]; together [rank, in_features]
    b: tuple[Tensor, ...]  # each [some outputs, rank]; together [out_features, rank]


SiteWeights = Mapping[int, Sequence[SliceWeights]]  # site -> slices that the adapter changes


@dataclass(frozen=True, slots=True)
class _Views:
    page_ids: tuple[int, ...]
    sites: SiteWeights


class DevicePool:
    def __init__(self, pages: Tensor, dtype: torch.dtype) -> None:
        """pages: the arena, [num_pages, page_bytes] uint8. dtype: of the matrices."""
        self._pages = pages
        self._dtype = dtype
        self._images: dict[str, tuple[ImageTable, Tensor]] = {}
        self._views: dict[str, _Views] = {}

    def add(self, table: ImageTable, image: Tensor) -> None:
        """Keeps an adapter's page images. image: [table.num_pages, page_bytes] uint8, never written to again."""
        if image.shape != (table.num_pages, self._pages.shape[1]):
            raise ValueError(f"an image of shape {list(image.shape)} for {table.num_pages} pages")
        self._images[table.digest] = (table, image)

    def remove(self, digest: str) -> None:
        self._images.pop(digest, None)
        self._views.pop(digest, None)

    def __contains__(self, digest: str) -> bool:
        return digest in self._images

    def copy(self, digest: str, first: int, page_ids: Sequence[int]) -> None:
        """Copies the images first, first + 1, ... into the pages page_ids."""
        _, image = self._images[digest]
        self._pages[torch.tensor(page_ids)] = image[first : first + len(page_ids)]

    def weights(self, digest: str, page_ids: Sequence[int]) -> SiteWeights:
        """Views of the adapter's matrices in its pages. They stay valid as long as it keeps these pages."""
        views = self._views.get(digest)
        if views is None or views.page_ids != tuple(page_ids):
            views = _Views(tuple(page_ids), self._view_sites(digest, page_ids))
            self._views[digest] = views
        return views.sites

    def _view_sites(self, digest: str, page_ids: Sequence[int]) -> SiteWeights:
        sites: dict[int, list[SliceWeights]] = {}
        for module in self._images[digest][0].modules:
            a = tuple(self._view(chunk, page_ids, module.in_features) for chunk in module.a)
            b = tuple(self._view(chunk, page_ids, module.rank) for chunk in module.b)
            weights = SliceWeights(module.column, module.rank, module.scaling, a, b)
            sites.setdefault(module.site, []).append(weights)
        return sites

    def _view(self, chunk: Chunk, page_ids: Sequence[int], width: int) -> Tensor:
        num_bytes = chunk.num_rows * width * self._dtype.itemsize
        content = self._pages[page_ids[chunk.page], chunk.offset : chunk.offset + num_bytes]
        return content.view(self._dtype).view(chunk.num_rows, width)
