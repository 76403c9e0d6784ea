"""DevicePool: adapter weights in the arena. Copies page images in, keeps what backends derive from where they stand.

Owns the host cache (the images). Which pages an adapter has is told to it at every call; how bytes get there, by its
copier.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .image import ImageTable
from .layout import Layout
from .targets import TargetKind

Derived = TypeVar("Derived")


class Copier(Protocol):
    def copy(self, pages: Tensor, page_ids: Sequence[int], images: Tensor) -> None:
        """Copies images into the pages page_ids of an arena. images: [len(page_ids), page_bytes] uint8, on the host."""


class HostCopier:
    """For an arena that is host memory."""

    def copy(self, pages: Tensor, page_ids: Sequence[int], images: Tensor) -> None:
        pages[torch.tensor(page_ids)] = images


HOST_COPIER = HostCopier()


class DevicePool:
    def __init__(
        self, pages: Tensor, dtype: torch.dtype, layout: Layout = Layout.VECTORS, copier: Copier = HOST_COPIER
    ) -> None:
        """pages: the arena, [num_pages, page_bytes] uint8. dtype, layout: of the matrices, as the kernels read them."""
        self.pages = pages
        self._copier = copier
        self.dtype = dtype
        self.layout = layout
        self._tables: dict[str, ImageTable] = {}
        self._images: dict[str, Tensor] = {}  # [num_pages, page_bytes] uint8; none of an adapter whose image is dropped
        self._changing_head: set[str] = set()
        self._vocab_sizes: dict[str, int] = {}  # of adapters that have their own
        self._derived: dict[str, tuple[tuple[int, ...], Any]] = {}

    def add(self, table: ImageTable, image: Tensor) -> None:
        """Keeps an adapter's page images. image: [table.num_pages, page_bytes] uint8 on the host, never
        written to again."""
        is_fitting = image.shape == (table.num_pages, self.pages.shape[1]) and image.dtype == torch.uint8
        if not is_fitting or image.device.type != "cpu":
            raise ValueError(f"an image of {list(image.shape)} {image.dtype} for {table.num_pages} pages")
        if (getattr(torch, table.dtype), table.layout) != (self.dtype, self.layout):
            raise ValueError(f"an image of {table.dtype} {table.layout} for a pool of {self.dtype} {self.layout}")
        self._tables[table.digest], self._images[table.digest] = table, image
        if any(module.kind is TargetKind.HEAD for module in table.modules):
            self._changing_head.add(table.digest)
        if table.vocab_size is not None:
            self._vocab_sizes[table.digest] = table.vocab_size

    def drop_image(self, digest: str) -> None:
        """What is in the arena stays usable; to be copied again, the adapter has to be added again."""
        self._images.pop(digest, None)

    def remove(self, digest: str) -> None:
        self.drop_image(digest)
        self._tables.pop(digest, None)
        self._changing_head.discard(digest)
        self._vocab_sizes.pop(digest, None)
        self._derived.pop(digest, None)

    def __contains__(self, digest: str) -> bool:
        """Whether there is an image to copy."""
        return digest in self._images

    def images(self) -> set[str]:
        """The adapters that there are images of."""
        return set(self._images)

    def changes_head(self, digest: str) -> bool:
        """Whether an adapter lands on the LM head."""
        return digest in self._changing_head

    def vocab_size_of(self, digest: str) -> int | None:
        """The number of logits of an adapter's rows, where it is not the model's."""
        return self._vocab_sizes.get(digest)

    def copy(self, digest: str, first: int, page_ids: Sequence[int]) -> None:
        """Copies the images first, first + 1, ... into the pages page_ids."""
        image = self._images[digest]
        if not 0 <= first <= first + len(page_ids) <= len(image) or min(page_ids, default=0) < 0:
            raise ValueError(f"pages {page_ids} for those of the image from {first} of {len(image)}")
        self._copier.copy(self.pages, page_ids, image[first : first + len(page_ids)])

    def derive(
        self, digest: str, page_ids: Sequence[int], build: Callable[[ImageTable, Sequence[int]], Derived]
    ) -> Derived:
        """What `build` makes of an adapter's table and its pages; kept as long as it has these pages."""
        known = self._derived.get(digest)
        if known is None or known[0] != tuple(page_ids):
            known = (tuple(page_ids), build(self._tables[digest], page_ids))
            self._derived[digest] = known
        derived: Derived = known[1]
        return derived
