"""The arena is zero and aligned, and the system commits only the pages that are written."""

import resource

import pytest
import torch

from blora.engine.memory.arena import ALIGNMENT, Arena, KVLayout
from blora.engine.memory.page_size import page_bytes_for

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, head_dim=8, block_size=4, dtype=torch.float32)


def test_layers_are_disjoint_views_of_every_page() -> None:
    arena = Arena(LAYOUT, num_pages=5, page_bytes=page_bytes_for(LAYOUT.block_bytes, largest_piece=0))
    for layer in range(3):
        arena.kv_layer(layer).fill_(layer + 1)
    for layer in range(3):
        view = arena.kv_layer(layer)
        assert view.shape == (5, 2, 2, 4, 8) and bool((view == layer + 1).all())
    assert arena.pages.data_ptr() % ALIGNMENT == 0


def test_pages_hold_the_wider_of_a_block_and_a_row() -> None:
    assert page_bytes_for(LAYOUT.block_bytes, largest_piece=0) == LAYOUT.block_bytes == 3 * 2 * 2 * 4 * 8 * 4
    assert page_bytes_for(LAYOUT.block_bytes, largest_piece=5000) == 5056
    with pytest.raises(ValueError, match="cannot hold"):
        Arena(LAYOUT, num_pages=2, page_bytes=64)


def test_a_large_arena_takes_no_memory_until_it_is_used() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arena = Arena(LAYOUT, num_pages=4 << 10, page_bytes=1 << 20)  # an arena of 4 GiB
    assert not arena.pages[17, :100].any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
