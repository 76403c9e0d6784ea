"""Native paged attention against float64, over scattered pages full of NaN; its bits depend on no other row."""

from dataclasses import replace

import pytest
import torch
from compute_threads import compute_threads
from kernel_cases.attention_world import Shape, World

from blora.engine.attention.base import AttentionMetadata, PagedRows
from blora.engine.kernels.library import Kernels

SHAPES = {
    "gqa": Shape(),
    "mha": Shape(heads=3, kv_heads=3),
    "mqa": Shape(heads=5, kv_heads=1, dim=24),
    "wide group": Shape(heads=40, kv_heads=1, dim=8),
    "small blocks": Shape(block_size=4, dim=8),
    "single token blocks": Shape(block_size=1, dim=8),
    "odd blocks": Shape(block_size=7, dim=8),
    "large blocks": Shape(block_size=48),
    "head of 6": Shape(dim=6),
    "head of 64": Shape(heads=9, kv_heads=3, dim=64),
    "head of 128": Shape(heads=2, kv_heads=1, dim=128),
    "window": Shape(window=7),
    "window of one": Shape(window=1),
    "window over spans": Shape(window=70),
    "norm": Shape(has_norm=True, dim=20),
    "soft cap": Shape(soft_cap=1.5),
    "soft cap in a window": Shape(soft_cap=30.0, window=9, has_norm=True),
}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-7}


@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_definition(kernels: Kernels, dtype: torch.dtype, name: str) -> None:
    world = World(kernels, SHAPES[name], dtype, [1, 9, 40, 133])
    for chunks in ([200], [33, 1, 1, 7, 64], [1]):
        world.arena.pages.fill_(0xFF)
        for row, y in enumerate(world.run(chunks)):
            torch.testing.assert_close(y.double(), world.expected(row), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_has_the_same_bits_in_any_company(kernels: Kernels, dtype: torch.dtype, name: str) -> None:
    world = World(kernels, SHAPES[name], dtype, [50, 9, 133, 77])
    alone = []
    for row, sequence in enumerate(world.sequences):
        alone.append(torch.cat([world.step({row: (i, i + 1)})[row] for i in range(len(sequence))]))
    for num_threads in (1, 2, 3):
        for chunks in ([200], [33, 1, 7, 64]):
            world.arena.pages.fill_(0xFF)
            with compute_threads(kernels, num_threads):
                together = world.run(chunks)
            for y, expected in zip(together, alone, strict=True):
                assert torch.equal(y, expected), (num_threads, chunks)


@pytest.mark.parametrize("window", [None, 1500])
def test_long_contexts_are_split_without_changing_a_bit(
    kernels: Kernels, dtype: torch.dtype, num_threads: int, window: int | None
) -> None:
    """The threads share the splits of few rows; in a large batch one thread computes each row."""
    shape = Shape(heads=2, kv_heads=1, window=window)
    world = World(kernels, shape, dtype, [3100, 40])
    whole = world.run([3000, 1])
    assert kernels.num_threads == num_threads
    expected = world.expected(0, first=3000)
    torch.testing.assert_close(whole[0][3000:].double(), expected, rtol=0, atol=TOLERANCE[dtype] / 2)
    few = world.step({0: (3099, 3100)})[0]
    many = world.step({0: (2900, 3100)})[0]
    assert torch.equal(few[0], many[-1]) and torch.equal(many, whole[0][-200:])


def test_layers_of_a_page_are_apart(kernels: Kernels, dtype: torch.dtype) -> None:
    world = World(kernels, Shape(window=3), dtype, [20])
    first, second = world.step({0: (0, 20)}, layer=0)[0], world.step({0: (0, 20)}, layer=1)[0]
    torch.testing.assert_close(first.double(), world.expected(0, layer=0), rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(second.double(), world.expected(0, layer=1), rtol=0, atol=TOLERANCE[dtype])
    assert not torch.equal(first, second)


def test_writes_only_the_new_tokens(kernels: Kernels, dtype: torch.dtype) -> None:
    world = World(kernels, Shape(), dtype, [20])
    world.step({0: (0, 5)})
    written = (world.arena.pages != 0xFF).sum()
    most = 5 * 2 * world.shape.kv_heads * world.shape.dim * dtype.itemsize
    assert 0.9 * most < written <= most


def test_a_row_of_nan_leaves_the_others_alone(kernels: Kernels, dtype: torch.dtype) -> None:
    world = World(kernels, Shape(), dtype, [30, 30, 30])
    expected = world.run([30])
    world.sequences[1].fill_(torch.nan)
    y = world.run([30])
    assert y[1].isnan().all()
    assert torch.equal(y[0], expected[0]) and torch.equal(y[2], expected[2])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_token_that_is_not_finite_leaves_earlier_ones_alone(
    kernels: Kernels, dtype: torch.dtype, value: float
) -> None:
    """Earlier tokens may belong to a prefix that other sequences share."""
    world = World(kernels, Shape(), dtype, [40])
    expected = world.step({0: (0, 40)})[0]
    world.sequences[0][35] = value
    y = world.step({0: (0, 40)})[0]
    assert not y[35:].isfinite().any()
    assert torch.equal(y[:35], expected[:35])


def test_what_the_kernel_cannot_do_is_refused(kernels: Kernels) -> None:
    shape = Shape()
    for wrong in (
        replace(shape, block_size=24),
        replace(shape, heads=300, kv_heads=1, dim=2),
        replace(shape, dim=7),
        replace(shape, dim=514),
    ):
        with pytest.raises(ValueError, match="block_size|heads|head_dim"):
            World(kernels, wrong, torch.float32, [1])
    world = World(kernels, shape, torch.float32, [4])
    plan = world.attention.plan(PagedRows([4], [4], [world.tables[0]]))
    y = torch.empty(4, shape.heads * shape.dim)
    for qkv in (world.sequences[0][:3], world.sequences[0].bfloat16(), world.sequences[0][:, :8]):
        with pytest.raises(ValueError, match="^qkv: "):
            world.attention.run(0, qkv, y, plan)
    with pytest.raises(TypeError, match="AttentionMetadata"):
        world.attention.run(0, world.sequences[0], y, AttentionMetadata())
