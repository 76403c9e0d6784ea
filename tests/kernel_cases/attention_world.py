"""Sequences with their KV in scattered pages of an arena full of NaN, and the attention that its definition gives."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blora.engine.attention.base import PagedRows
from blora.engine.attention.cpu import CpuAttention
from blora.engine.kernels.library import Kernels
from blora.engine.memory.arena import SLACK, Arena, KVLayout
from blora.engine.memory.page_size import page_bytes_for
from blora.engine.model.rope import rope_cache, rotate
from blora.engine.model_files.config import ModelConfig, RopeConfig


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    block_size: int = 16
    window: int | None = None
    has_norm: bool = False
    soft_cap: float | None = None

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
            max_position_embeddings=1,  # the world makes its own rope table
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
        self, kernels: Kernels, shape: Shape, dtype: torch.dtype, lengths: Sequence[int], seed: int = 0, gap: int = 64
    ) -> None:
        """gap: bytes between the blocks of neighbouring pages."""
        torch.manual_seed(seed)
        self.shape, self.dtype = shape, dtype
        num_pages = sum(-(-length // shape.block_size) for length in lengths) + 3
        layout = KVLayout(2, shape.kv_heads, shape.dim, shape.block_size, dtype)
        self.arena = make_arena(layout, num_pages, page_bytes_for(layout.block_bytes, 0) + gap)
        self.cos, self.sin = rope_cache(shape.config.rope, shape.dim, max(lengths))
        self.norms = [(torch.rand(shape.heads + shape.kv_heads, shape.dim) + 0.5).to(dtype) for _ in range(2)]
        norms = self.norms if shape.has_norm else []
        self.attention = CpuAttention(kernels, self.arena, shape.config, self.cos, self.sin, norms, shape.soft_cap)
        width = (shape.heads + 2 * shape.kv_heads) * shape.dim
        self.sequences = [torch.randn(length, width).to(dtype) for length in lengths]
        pages = torch.randperm(num_pages).tolist()
        self.tables = []
        for length in lengths:
            count = -(-length // shape.block_size)
            self.tables.append(pages[:count])
            pages = pages[count:]

    def step(self, ranges: dict[int, tuple[int, int]], layer: int = 1) -> dict[int, Tensor]:
        """Computes one step. ranges: row -> the tokens [start, end) of its sequence that the step computes."""
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
        """Computes all sequences together, each cut into chunks of these sizes; the last size repeats."""
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

    def expected(self, row: int, layer: int = 1, first: int = 0) -> Tensor:
        """Returns the result of the tokens from `first` on, by definition, in float64, from q, k and v rounded as the
        model stores them: [length - first, heads * dim]."""
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
        scores = torch.einsum("qhd,khd->hqk", qk[first:, : shape.heads], k) * shape.dim**-0.5
        if shape.soft_cap is not None:
            scores = shape.soft_cap * torch.tanh(scores / shape.soft_cap)
        distance = torch.arange(first, length)[:, None] - torch.arange(length)
        window = shape.window if layer == 1 and shape.window else length
        scores.masked_fill_((distance < 0) | (distance >= window), -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)


def make_arena(layout: KVLayout, num_pages: int, page_bytes: int) -> Arena:
    """An arena on the heap, whose ends AddressSanitizer watches, with no more slack than the kernels are promised."""
    arena = Arena(layout, num_pages, page_bytes)
    size = num_pages * page_bytes
    arena.pages = torch.full((size + SLACK,), 0xFF, dtype=torch.uint8)[:size].view(num_pages, page_bytes)
    return arena
