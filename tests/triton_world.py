"""A model's modules and adapters of every kind, placed twice: for the reference, and in Layout.GPU for the kernels,
which run in Triton's interpreter (the root's conftest turns it on)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blora.adapters import Checkpoint, TargetModule, pack
from blora.adapters.device_pool import DevicePool
from blora.adapters.layout import Layout
from blora.adapters.lora import LoRABackend, Segment
from blora.adapters.lora_module import LoRAModule, TrainedRows
from blora.adapters.reference import ReferenceLoRA
from blora.adapters.targets import TABLES, TargetKind
from blora.adapters.triton.lora import TritonLoRA

Use = tuple[str, float]

HIDDEN, VOCABULARY = 160, 300
# site: inputs, and (first column, width) of its modules: q, k and v; o; gate and up of unaligned widths; down, whose
# inputs are taken in splits.
SHAPES = {
    0: (HIDDEN, ((0, 160), (160, 48), (208, 48))),
    1: (HIDDEN, ((0, 160),)),
    2: (HIDDEN, ((0, 131), (131, 131))),
    3: (1160, ((0, 160),)),
}
HEAD, EMBEDDING, NORM = 4, 5, 6
POISON = 0xFF  # a tensor of these bytes is NaN

TARGETS = (
    *(
        TargetModule(f"{site}.{column}", num_in, width, site, column)
        for site, (num_in, modules) in SHAPES.items()
        for column, width in modules
    ),
    TargetModule("head", HIDDEN, VOCABULARY, HEAD, 0, kind=TargetKind.HEAD),
    TargetModule("embedding", VOCABULARY, HIDDEN, EMBEDDING, 0, kind=TargetKind.EMBEDDING),
    TargetModule("norm", HIDDEN, HIDDEN, NORM, 0, kind=TargetKind.NORM),
)
LINEARS = tuple(target for target in TARGETS if target.kind is TargetKind.LINEAR)


def make_checkpoint(
    digest: str, ranks: dict[str, int], has_gain_shift: bool = False, scaling: float = 0.5
) -> Checkpoint:
    """ranks: module name -> rank; 0 for a module with only a shift. has_gain_shift: a gain and a shift on every
    module."""
    rng = np.random.default_rng(sum(digest.encode()))

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    modules = []
    for target in TARGETS:
        if target.name in ranks:
            rank, num_in, num_out = ranks[target.name], target.in_features, target.out_features
            shift = normal(num_out) if has_gain_shift and target.kind is TargetKind.LINEAR or rank == 0 else None
            gain = 1 + normal(num_out) / 4 if has_gain_shift else None
            a, b = normal(rank, num_in) / num_in**0.5, normal(num_out, rank)
            modules.append(LoRAModule(target, scaling + len(modules) / 8, a, b, shift, gain))
    return Checkpoint("", digest, tuple(modules), ())


def with_rows(digest: str, ids: tuple[int, ...]) -> Checkpoint:
    """Adds trained rows of both tables beside one linear; without ids, all rows."""
    rng = np.random.default_rng(len(ids))
    modules = list(make_checkpoint(digest, {"1.0": 8}).modules)
    for target in TARGETS:
        if target.kind in TABLES:
            rows = rng.standard_normal((len(ids) or VOCABULARY, HIDDEN)).astype(np.float32)
            nothing = np.zeros((0, target.in_features), np.float32), np.zeros((target.out_features, 0), np.float32)
            modules.append(LoRAModule(target, 1.0, *nothing, rows=TrainedRows(ids, rows)))
    return Checkpoint("", digest, tuple(modules), ())


def with_norm(digest: str, weight: float) -> Checkpoint:
    """Adds a norm, all of whose weights are the same, beside one linear."""
    (norm,) = (target for target in TARGETS if target.kind is TargetKind.NORM)
    nothing = np.zeros((0, HIDDEN), np.float32), np.zeros((HIDDEN, 0), np.float32)
    rows = TrainedRows((), np.full((1, HIDDEN), weight, np.float32))
    linear = make_checkpoint(digest, {"1.0": 8}).modules
    return Checkpoint("", digest, (*linear, LoRAModule(norm, 1.0, *nothing, rows=rows)), ())


def everywhere(rank: int) -> dict[str, int]:
    return {target.name: rank for target in LINEARS}


RANKS = (1, 2, 4, 7, 8, 11, 16, 17, 32, 61, 64, 128)
CHECKPOINTS = {
    **{f"r{rank}": make_checkpoint(f"r{rank}", everywhere(rank)) for rank in RANKS},
    "some": make_checkpoint("some", {"0.0": 5, "0.208": 20, "2.131": 3}),
    "dora": make_checkpoint("dora", {**everywhere(6), "head": 3, "embedding": 4}, has_gain_shift=True),
    "gains": make_checkpoint("gains", everywhere(9), has_gain_shift=True),
    "bias": make_checkpoint("bias", {"0.160": 0, "2.0": 0, "1.0": 4}),
    "embedding and head": make_checkpoint("embedding and head", {"1.0": 2, "head": 21, "embedding": 12}),
    "rows": with_rows("rows", (3, 7, 150, 299)),
    "all-rows": with_rows("all-rows", ()),
    "norm 2": with_norm("norm 2", 2.0),
    "norm 3": with_norm("norm 3", 3.0),
}


@dataclass
class Placed:
    """The adapters in an arena of their own that is otherwise full of NaN, each in pages in random order."""

    pool: DevicePool
    lora: LoRABackend
    page_ids: dict[str, list[int]]


class World:
    def __init__(self, dtype: torch.dtype, page_bytes: int = 1 << 14) -> None:
        self.dtype = dtype
        self.reference = self._place(Layout.CPU, page_bytes)
        self.triton = self._place(Layout.GPU, page_bytes)

    def _place(self, layout: Layout, page_bytes: int) -> Placed:
        name = str(self.dtype).removeprefix("torch.")
        images = [pack(checkpoint, name, page_bytes, layout) for checkpoint in CHECKPOINTS.values()]
        num_pages = sum(image.table.num_pages for image in images)
        pages = torch.full((num_pages, page_bytes), POISON, dtype=torch.uint8)
        pool = DevicePool(pages, self.dtype, layout)
        free = torch.randperm(num_pages, generator=torch.Generator().manual_seed(0)).tolist()
        page_ids: dict[str, list[int]] = {}
        for image in images:
            digest = image.table.digest
            page_ids[digest] = [free.pop() for _ in range(image.table.num_pages)]
            pool.add(image.table, torch.from_numpy(image.pages))
            pool.copy(digest, 0, page_ids[digest])
        lora = TritonLoRA(pool, TARGETS) if layout is Layout.GPU else ReferenceLoRA(pool)
        return Placed(pool, lora, page_ids)

    def rows(self, site: int, num_tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Returns random x and y of a site."""
        generator = torch.Generator().manual_seed(seed)
        members = [target for target in TARGETS if target.site == site]
        width = max(target.offset + target.out_features for target in members)
        x = torch.randn(num_tokens, members[0].in_features, generator=generator)
        return x.to(self.dtype), torch.randn(num_tokens, width, generator=generator).to(self.dtype)

    def run(self, placed: Placed, site: int, x: Tensor, y: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Runs the site; returns the new y."""
        result = y.clone()
        placed.lora.run(site, x, result, placed.lora.plan(segments, placed.page_ids))
        return result

    def embed(self, placed: Placed, token_ids: Tensor, y: Tensor, segments: Sequence[Segment]) -> Tensor:
        result = y.clone()
        placed.lora.embed(EMBEDDING, token_ids, result, placed.lora.plan(segments, placed.page_ids))
        return result

    def check(self, site: int, segments: Sequence[Segment], num_tokens: int) -> None:
        """Checks that y is near the reference, and unchanged where no adapter changes it."""
        x, y = self.rows(site, num_tokens)
        result = self.run(self.triton, site, x, y, segments)
        expected = self.run(self.reference, site, x, y, segments)
        assert_near(result, expected, self.dtype)
        untouched = torch.ones(y.shape, dtype=torch.bool)
        for segment in segments:
            for digest, _ in segment.adapters:
                for target in (module.target for module in CHECKPOINTS[digest].modules if module.target.site == site):
                    columns = slice(target.offset, target.offset + target.out_features)
                    untouched[segment.start : segment.end, columns] = False
        assert torch.equal(result[untouched], y[untouched])


def assert_near(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compares with a tolerance. In float16, h is rounded as an input of B, which is not the last rounding."""
    error = 1e-5 if dtype is torch.float32 else 4e-3
    scale = max(1.0, float(expected.float().abs().mean()))
    torch.testing.assert_close(result.float(), expected.float(), rtol=error, atol=error * scale)


def segments_of(runs: Sequence[tuple[int, Sequence[Use]]]) -> tuple[list[Segment], int]:
    """Returns segments and the number of tokens. runs: number of tokens and adapters of each run; a base run has no
    adapter and gives no segment."""
    segments, start = [], 0
    for num_tokens, uses in runs:
        if uses:
            segments.append(Segment(start, start + num_tokens, tuple(uses)))
        start += num_tokens
    return segments, start
