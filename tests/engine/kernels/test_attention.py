"""Native paged attention against float64, over scattered pages full of NaN; and its bits, whatever else is computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from blora.engine.arena import Arena, KVLayout, page_bytes_for
from blora.engine.attention.base import AttentionMetadata, PagedRows
from blora.engine.attention.cpu import CpuAttention
from blora.engine.kernels.library import Kernels
from blora.engine.model.config import ModelConfig, RopeConfig
from blora.engine.model.rope import rope_cache, rotate

MAX_POSITIONS = 5000


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    block_size: int = 16
    window: int | None = None
    has_norm: bool = False

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            architecture="test",
            vocab_size=1,
            hidden_size=1,
            intermediate_size=1,
            num_layers=2,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.dim,
            rms_norm_eps=1e-5,
            rope=RopeConfig("default", 10000.0),
            max_position_embeddings=MAX_POSITIONS,
            qkv_bias=False,
            o_bias=False,
            mlp_bias=False,
            qk_norm=self.has_norm,
            sliding_windows=(None, self.window),
            tie_word_embeddings=True,
            dtype="float32",
        )


class World:
    """An arena full of NaN, and sequences with all their q, k and v."""

    def __init__(
        self, kernels: Kernels, shape: Shape, dtype: torch.dtype, lengths: Sequence[int], seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.shape, self.dtype = shape, dtype
        num_pages = sum(-(-length // shape.block_size) for length in lengths) + 3
        layout = KVLayout(2, shape.kv_heads, shape.dim, shape.block_size, dtype)
        self.arena = Arena(layout, num_pages, page_bytes_for(layout, 0) + 64)
        self.arena.pages.fill_(0xFF)
        self.cos, self.sin = rope_cache(shape.config.rope, shape.dim, MAX_POSITIONS)
        self.norms = [(torch.rand(shape.heads + shape.kv_heads, shape.dim) + 0.5).to(dtype) for _ in range(2)]
        norms = self.norms if shape.has_norm else []
        self.attention = CpuAttention(kernels, self.arena, shape.config, self.cos, self.sin, norms)
        width = (shape.heads + 2 * shape.kv_heads) * shape.dim
        self.sequences = [torch.randn(length, width).to(dtype) for length in lengths]
        pages = torch.randperm(num_pages).tolist()
        self.tables = []
        for length in lengths:
            count = -(-length // shape.block_size)
            self.tables.append(pages[:count])
            pages = pages[count:]

    def step(self, ranges: dict[int, tuple[int, int]], layer: int = 1) -> dict[int, Tensor]:
        """ranges: row -> the tokens [start, end) of its sequence that this step computes."""
        rows = PagedRows(
            [end - start for start, end in ranges.values()],
            [end for _, end in ranges.values()],
            [self.tables[row] for row in ranges],
        )
        qkv = torch.cat([self.sequences[row][start:end] for row, (start, end) in ranges.items()])
        y = torch.full((len(qkv), self.shape.heads * self.shape.dim), torch.nan, dtype=self.dtype)
        self.attention.run(layer, qkv, y, self.attention.plan(rows))
        return dict(zip(ranges, y.split([end - start for start, end in ranges.values()]), strict=True))

    def run(self, chunks: Sequence[int]) -> list[Tensor]:
        """All sequences together, each cut in chunks; the last size goes on."""
        done = [0] * len(self.sequences)
        parts: list[list[Tensor]] = [[] for _ in done]
        for index in range(sum(len(sequence) for sequence in self.sequences)):
            size = chunks[min(index, len(chunks) - 1)]
            ranges = {
                row: (start, min(start + size, len(self.sequences[row])))
                for row, start in enumerate(done)
                if start < len(self.sequences[row])
            }
            if not ranges:
                break
            for row, part in self.step(ranges).items():
                parts[row].append(part)
                done[row] = ranges[row][1]
        return [torch.cat(part) for part in parts]

    def expected(self, row: int, layer: int = 1) -> Tensor:
        """By definition, in float64, from q, k and v rounded as the model stores them: [length, heads * dim]."""
        shape, qkv = self.shape, self.sequences[row]
        length, num_qk = len(qkv), shape.heads + shape.kv_heads
        heads = qkv.view(length, -1, shape.dim)
        qk, v = heads[:, :num_qk], heads[:, num_qk:].double()
        if shape.has_norm:
            normed = qk.double() * torch.rsqrt(qk.double().square().mean(-1, keepdim=True) + 1e-5)
            qk = self.norms[layer] * normed.to(self.dtype)
        qk = rotate(qk, self.cos[:length, None], self.sin[:length, None]).double()
        group = shape.heads // shape.kv_heads
        k, v = (x.repeat_interleave(group, dim=1) for x in (qk[:, shape.heads :], v))
        scores = torch.einsum("qhd,khd->hqk", qk[:, : shape.heads], k) * shape.dim**-0.5
        distance = torch.arange(length)[:, None] - torch.arange(length)
        window = shape.window if layer == 1 and shape.window else length
        scores.masked_fill_((distance < 0) | (distance >= window), -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)


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
    "window over tiles": Shape(window=70),
    "norm": Shape(has_norm=True, dim=20),
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
def test_a_row_has_the_same_bits_in_any_company(
    kernels: Kernels, dtype: torch.dtype, num_threads: int, name: str
) -> None:
    world = World(kernels, SHAPES[name], dtype, [50, 9, 133, 77])
    torch.set_num_threads(1)
    alone = []
    for row, sequence in enumerate(world.sequences):
        alone.append(torch.cat([world.step({row: (i, i + 1)})[row] for i in range(len(sequence))]))
    torch.set_num_threads(num_threads)
    for chunks in ([200], [33, 1, 7, 64]):
        world.arena.pages.fill_(0xFF)
        for y, expected in zip(world.run(chunks), alone, strict=True):
            assert torch.equal(y, expected)


@pytest.mark.parametrize("window", [None, 1500])
def test_long_contexts_are_split_without_changing_a_bit(
    kernels: Kernels, dtype: torch.dtype, num_threads: int, window: int | None
) -> None:
    """A few rows are cut into splits that threads share; in a large batch each is computed by one thread."""
    shape = Shape(heads=2, kv_heads=1, window=window)
    world = World(kernels, shape, dtype, [3100, 40])
    whole = world.run([3000, 1])
    assert torch.get_num_threads() == num_threads
    torch.testing.assert_close(whole[0][-100:].double(), world.expected(0)[-100:], rtol=0, atol=TOLERANCE[dtype] / 2)
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


def test_what_the_kernel_cannot_do_is_refused(kernels: Kernels) -> None:
    shape = Shape()
    for wrong in (
        replace(shape, block_size=24),
        replace(shape, heads=300, kv_heads=1, dim=2),
        replace(shape, dim=7),
        replace(shape, dim=514),
    ):
        with pytest.raises(ValueError, match="block_size|heads"):
            World(kernels, wrong, torch.float32, [1])
    world = World(kernels, shape, torch.float32, [4])
    plan = world.attention.plan(PagedRows([4], [4], [world.tables[0]]))
    y = torch.empty(4, shape.heads * shape.dim)
    for qkv in (world.sequences[0][:3], world.sequences[0].bfloat16(), world.sequences[0][:, :8]):
        with pytest.raises(ValueError, match="^qkv: "):
            world.attention.run(0, qkv, y, plan)
    with pytest.raises(TypeError, match="AttentionMetadata"):
        world.attention.run(0, world.sequences[0], y, AttentionMetadata())
