"""The arena: one zeroed allocation cut into equal pages, which hold KV blocks or adapter chunks.

Owns the bytes and the views of them. `scheduler/` decides which block or adapter gets a page.
"""

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from .page_size import ALIGNMENT, kv_layer_bytes

CPU = torch.device("cpu")
SLACK = 64  # bytes after the last page: a vector load may begin in a page and end after it


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The shape of one KV block: K and V of all layers for `block_size` tokens."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int  # tokens
    dtype: torch.dtype

    @property
    def layer_bytes(self) -> int:
        return kv_layer_bytes(self.num_kv_heads, self.block_size, self.head_dim, self.dtype.itemsize)

    @property
    def block_bytes(self) -> int:
        return self.num_layers * self.layer_bytes


class Arena:
    def __init__(self, layout: KVLayout, num_pages: int, page_bytes: int, device: torch.device = CPU) -> None:
        if page_bytes < layout.block_bytes or page_bytes % ALIGNMENT:
            raise ValueError(f"a page of {page_bytes} bytes cannot hold a KV block of {layout.block_bytes} bytes")
        self.layout = layout
        self.num_pages = num_pages
        self.page_bytes = page_bytes
        if device.type == "cpu":
            self.pages = _host_pages(num_pages, page_bytes)
        else:
            self.pages = torch.zeros(num_pages, page_bytes, dtype=torch.uint8, device=device)

    def kv_layer(self, layer: int) -> Tensor:
        """Returns a view of one layer's K and V in all pages: [num_pages, 2, num_kv_heads, block_size, head_dim]."""
        layout = self.layout
        slab = self.pages[:, layer * layout.layer_bytes : (layer + 1) * layout.layer_bytes]
        shape = (self.num_pages, 2, layout.num_kv_heads, layout.block_size, layout.head_dim)
        return slab.view(layout.dtype).view(shape)


def _host_pages(num_pages: int, page_bytes: int) -> Tensor:
    # Anonymous memory is aligned, and it is zero, so that no stale bits can be read as NaN. The system commits its
    # pages as they are first written; torch.zeros would write all of them now.
    memory = mmap.mmap(-1, num_pages * page_bytes + SLACK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A kernel reads adapters from many places at a time: with the system's small pages it would wait for addresses, not
    # for bytes.
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:-SLACK].view(num_pages, page_bytes)
