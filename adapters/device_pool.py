"""DevicePool: adapter weights in the arena. Copies page images into it and keeps the values that backends derive there.

Owns the host cache (the images). Callers name an adapter's pages at every call; a Copier moves the bytes.
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
    """The copier for an arena in host memory."""

    def copy(self, pages: Tensor, page_ids: Sequence[int], images: Tensor) -> None:
        pages[torch.tensor(page_ids)] = images


HOST_COPIER = HostCopier()


class DevicePool:
    def __init__(
        self, pages: Tensor, dtype: torch.dtype, layout: Layout = Layout.CPU, copier: Copier = HOST_COPIER
    ) -> None:
        """pages: the arena, [num_pages, page_bytes] uint8. dtype, layout: those in which the kernels read matrices."""
        self.pages = pages
        self._copier = copier
        self.before_copy: Callable[[str], None] | None = None  # called with the digest of an adapter about to be copied
        self.dtype = dtype
        self.layout = layout
        self._tables: dict[str, ImageTable] = {}
        self._images: dict[str, Tensor] = {}  # [num_pages, page_bytes] uint8; no entry for a dropped image
        self._changing_head: set[str] = set()
        self._changing_norms: set[str] = set()
        self._vocab_sizes: dict[str, int] = {}  # only of adapters with a vocabulary of their own
        self._derived: dict[str, dict[Callable[..., Any], tuple[tuple[int, ...], Any]]] = {}  # by digest, by function

    def add(self, table: ImageTable, image: Tensor) -> None:
        """Keeps an adapter's page images. image: [table.num_pages, page_bytes] uint8 on the host; the caller must not
        write to it again."""
        is_fitting = image.shape == (table.num_pages, self.pages.shape[1]) and image.dtype == torch.uint8
        if not is_fitting or image.device.type != "cpu":
            raise ValueError(f"an image of {list(image.shape)} {image.dtype} is not {table.num_pages} pages of bytes")
        if (getattr(torch, table.dtype), table.layout) != (self.dtype, self.layout):
            raise ValueError(f"an image of {table.dtype} {table.layout} in a pool of {self.dtype} {self.layout}")
        self._tables[table.digest], self._images[table.digest] = table, image
        if any(module.kind is TargetKind.HEAD for module in table.modules):
            self._changing_head.add(table.digest)
        if any(module.kind is TargetKind.NORM for module in table.modules):
            self._changing_norms.add(table.digest)
        if table.vocab_size is not None:
            self._vocab_sizes[table.digest] = table.vocab_size

    def drop_image(self, digest: str) -> None:
        """Drops an adapter's image. Its pages in the arena stay usable; before it is copied again, add it again."""
        self._images.pop(digest, None)

    def remove(self, digest: str) -> None:
        self.drop_image(digest)
        self._tables.pop(digest, None)
        self._changing_head.discard(digest)
        self._changing_norms.discard(digest)
        self._vocab_sizes.pop(digest, None)
        self._derived.pop(digest, None)

    def __contains__(self, digest: str) -> bool:
        """Returns whether the adapter has an image to copy."""
        return digest in self._images

    def images(self) -> set[str]:
        """Returns the adapters that have an image."""
        return set(self._images)

    def changes_head(self, digest: str) -> bool:
        """Returns whether an adapter changes the LM head."""
        return digest in self._changing_head

    def changes_norms(self, digest: str) -> bool:
        """Returns whether an adapter has trained the weight of a norm."""
        return digest in self._changing_norms

    def vocab_size_of(self, digest: str) -> int | None:
        """Returns the number of logits of an adapter's rows, or None if it is the model's."""
        return self._vocab_sizes.get(digest)

    def copy(self, digest: str, first: int, page_ids: Sequence[int]) -> None:
        """Copies the page images first, first + 1, ... into the pages page_ids of the arena."""
        if self.before_copy is not None:
            self.before_copy(digest)
        image = self._images[digest]
        if not 0 <= first <= first + len(page_ids) <= len(image) or min(page_ids, default=0) < 0:
            raise ValueError(f"pages {page_ids} cannot hold an image of {len(image)} pages from page {first} on")
        self._copier.copy(self.pages, page_ids, image[first : first + len(page_ids)])

    def derive(
        self, digest: str, page_ids: Sequence[int], build: Callable[[ImageTable, Sequence[int]], Derived]
    ) -> Derived:
        """Returns `build(table, page_ids)` of an adapter. The result is kept as long as the adapter has these pages."""
        of_adapter = self._derived.setdefault(digest, {})
        known = of_adapter.get(build)
        if known is None or known[0] != tuple(page_ids):
            known = (tuple(page_ids), build(self._tables[digest], page_ids))
            of_adapter[build] = known
        derived: Derived = known[1]
        return derived
