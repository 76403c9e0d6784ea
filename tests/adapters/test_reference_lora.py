"""ReferenceLoRA and DevicePool against a dense float64 sum, over an arena whose other bytes are all NaN."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blora.adapters import Checkpoint, TargetModule, pack
from blora.adapters.device_pool import DevicePool
from blora.adapters.lora import LoRAMetadata, Segment
from blora.adapters.peft.checkpoint import LoRAModule
from blora.adapters.reference import ReferenceLoRA

PAGE_BYTES = 1024  # the size of a panel of a B, so that matrices lie in many pages
NUM_PAGES = 1500
NUM_IN = 24
# site -> (first column, width) of its slices; site 3 has none
SLICES = {0: ((0, 20), (20, 9), (29, 9)), 1: ((0, 33),), 2: ((0, 16), (16, 16)), 3: ()}
WIDTHS = {0: 38, 1: 33, 2: 32, 3: 12}
RANKS = (1, 2, 3, 8, 17, 48)

Use = tuple[str, float]


def make_checkpoint(digest: str, rank: int, sites: Mapping[int, Sequence[int]]) -> Checkpoint:
    """sites: site -> the slices that the adapter changes. Ranks differ from slice to slice."""
    generator = np.random.default_rng(sum(digest.encode()) + rank)
    modules = []
    for site, numbers in sites.items():
        for number in numbers:
            column, width = SLICES[site][number]
            own_rank = rank + number
            a = generator.standard_normal((own_rank, NUM_IN)).astype(np.float32)
            b = generator.standard_normal((width, own_rank)).astype(np.float32)
            target = TargetModule(f"{site}.{number}", NUM_IN, width, site, column)
            modules.append(LoRAModule(target, 0.25 + number, a, b))
    return Checkpoint("", digest, tuple(modules), ())


EVERYWHERE = {0: (0, 1, 2), 1: (0,), 2: (0, 1)}
CHECKPOINTS = {
    **{f"r{rank}": make_checkpoint(f"r{rank}", rank, EVERYWHERE) for rank in RANKS},
    "some": make_checkpoint("some", 5, {0: (0, 2), 2: (1,)}),
    "one": make_checkpoint("one", 4, {1: (0,)}),
}


class World:
    """An arena full of NaN in which every adapter has its own pages, in random order."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.pages = torch.full((NUM_PAGES, PAGE_BYTES), 0xFF, dtype=torch.uint8)
        self.pool = DevicePool(self.pages, dtype)
        self.lora = ReferenceLoRA(self.pool)
        self.free = torch.randperm(NUM_PAGES, generator=torch.Generator().manual_seed(0)).tolist()
        self.page_ids: dict[str, list[int]] = {}
        for digest, checkpoint in CHECKPOINTS.items():
            image = pack(checkpoint, str(dtype).removeprefix("torch."), PAGE_BYTES)
            self.pool.add(image.table, torch.from_numpy(image.pages))
            self.place(digest, image.table.num_pages)

    def place(self, digest: str, num_pages: int) -> None:
        """Copies the adapter into free pages, in two parts."""
        page_ids = [self.free.pop() for _ in range(num_pages)]
        half = num_pages // 2
        for first, part in ((0, page_ids[:half]), (half, page_ids[half:])):
            if part:
                self.pool.copy(digest, first, part)
        self.page_ids[digest] = page_ids

    def poison(self, page_ids: Sequence[int]) -> None:
        self.pages[torch.tensor(page_ids)] = 0xFF

    def move(self, digest: str) -> None:
        """Moves the adapter to other pages and poisons the old ones."""
        old = self.page_ids[digest]
        self.place(digest, len(old))
        self.poison(old)

    def run(self, site: int, x: Tensor, y: Tensor, segments: Sequence[Segment]) -> Tensor:
        used = {digest for segment in segments for digest, _ in segment.adapters}
        metadata = self.lora.plan(segments, {digest: self.page_ids[digest] for digest in used})
        result = y.clone()
        self.lora.run(site, x, result, metadata)
        return result


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def make_rows(site: int, num_tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_tokens, NUM_IN, generator=generator)
    y = torch.randn(num_tokens, WIDTHS[site], generator=generator)
    return x.to(dtype), y.to(dtype)


def dense(site: int, x: Tensor, y: Tensor, segments: Sequence[Segment], dtype: torch.dtype) -> Tensor:
    """Computes the definition in float64, with weights rounded to dtype."""
    total = y.double()
    for segment in segments:
        rows = slice(segment.start, segment.end)
        for digest, scale in segment.adapters:
            for module in CHECKPOINTS[digest].modules:
                if module.target.site == site:
                    a, b = (torch.from_numpy(matrix).to(dtype).double() for matrix in (module.a, module.b))
                    columns = slice(module.target.offset, module.target.offset + module.target.out_features)
                    total[rows, columns] += scale * module.scaling * (x[rows].double() @ a.T @ b.T)
    return total


def segments_of(runs: Sequence[tuple[int, Sequence[Use]]]) -> list[Segment]:
    """runs: number of tokens and adapters of each run; base runs have no adapter and no segment."""
    segments, start = [], 0
    for num_tokens, uses in runs:
        if uses and num_tokens:
            segments.append(Segment(start, start + num_tokens, tuple(uses)))
        start += num_tokens
    return segments


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().view(torch.uint8).flatten().tolist()


def base_rows(num_tokens: int, segments: Sequence[Segment]) -> list[int]:
    covered = {row for segment in segments for row in range(segment.start, segment.end)}
    return [row for row in range(num_tokens) if row not in covered]


def check(world: World, runs: Sequence[tuple[int, Sequence[Use]]], dtype: torch.dtype = torch.float32) -> None:
    segments, num_tokens = segments_of(runs), sum(num for num, _ in runs)
    for site in SLICES:
        x, y = make_rows(site, num_tokens, dtype)
        result = world.run(site, x, y, segments)
        expected = dense(site, x, y, segments, world.dtype)
        rounding = max(torch.finfo(dtype).eps / 2, 1e-5)  # one rounding, to nearest
        torch.testing.assert_close(result.double(), expected, rtol=rounding, atol=2e-4)
        untouched = base_rows(num_tokens, segments)
        assert bits(result[untouched]) == bits(y[untouched])


DISTINCT = [(1, [(f"r{rank}", 1.0)]) for rank in RANKS]
POPULARITY: dict[str, list[tuple[int, list[Use]]]] = {
    "distinct": DISTINCT,
    "uniform": [(3, [(f"r{rank}", 1.0)]) for rank in RANKS],
    "skewed": [(2, []), (20, [("r8", 1.0)]), (3, [("r2", 1.0)]), (1, [("r48", 1.0)]), (1, [("one", 1.0)])],
    "identical": [(16, [("r17", 1.0)])],
    "base only": [(9, [])],
    "base between": [(2, [("r1", 1.0)]), (4, []), (1, [("some", 1.0)]), (3, [])],
    "one token": [(1, [("r3", 1.0)])],
    "scaled": [(4, [("r8", 0.5)]), (4, [("r8", -2.0)]), (4, [("r8", 0.0)])],
    "several": [(4, [("r8", 0.5), ("r48", 1.5)]), (2, [("some", 1.0), ("one", 1.0), ("r1", -1.0)])],
    "the same twice": [(4, [("r8", 0.5), ("r8", 0.25)])],
}


@pytest.mark.parametrize("popularity", POPULARITY)
def test_the_change_is_the_dense_sum(popularity: str, world: World) -> None:
    check(world, POPULARITY[popularity])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("popularity", ["distinct", "base between", "several"])
def test_the_sum_is_rounded_once(popularity: str, dtype: torch.dtype) -> None:
    check(World(dtype), POPULARITY[popularity], dtype)


USES = st.lists(
    st.tuples(st.sampled_from(sorted(CHECKPOINTS)), st.sampled_from([1.0, 0.5, -1.5])),
    max_size=3,
    unique_by=lambda use: use[0],
)


@settings(max_examples=40, deadline=None)
@given(runs=st.lists(st.tuples(st.integers(1, 6), USES), min_size=1, max_size=8))
def test_any_mixture_of_segments(world: World, runs: list[tuple[int, list[Use]]]) -> None:
    check(world, runs)


def test_a_zero_scale_leaves_the_values(world: World) -> None:
    x, y = make_rows(0, 4)
    torch.testing.assert_close(world.run(0, x, y, [Segment(0, 4, (("r8", 0.0),))]), y, rtol=0, atol=0)


def test_a_row_does_not_depend_on_the_other_segments(world: World) -> None:
    x, y = make_rows(0, 6)
    use = (("r8", 1.0),)
    alone = world.run(0, x, y, [Segment(2, 3, use)])[2]
    mixed = world.run(0, x, y, [Segment(0, 2, (("r48", 1.0),)), Segment(2, 3, use), Segment(3, 6, (("r1", 2.0),))])[2]
    assert bits(mixed) == bits(alone)


def test_adapters_are_split_over_pages_that_are_not_adjacent(world: World) -> None:
    page_ids = world.page_ids["r48"]
    assert len(page_ids) > 10
    assert page_ids != sorted(page_ids)


def test_moved_pages_give_the_same_bits() -> None:
    world = World()
    x, y = make_rows(0, 5)
    segments = [Segment(0, 5, (("some", 1.0),))]
    before = world.run(0, x, y, segments)
    world.move("some")
    assert bits(world.run(0, x, y, segments)) == bits(before)


def test_pages_taken_and_given_back_are_read_again() -> None:
    world = World()
    x, y = make_rows(1, 3)
    segments = [Segment(0, 3, (("one", 1.0),))]
    before = world.run(1, x, y, segments)
    world.poison(world.page_ids["one"])
    assert world.run(1, x, y, segments).isnan().any()
    world.pool.copy("one", 0, world.page_ids["one"])
    assert bits(world.run(1, x, y, segments)) == bits(before)


def test_base_rows_read_no_adapter_memory() -> None:
    world = World()
    x, y = make_rows(0, 6)
    world.pages.fill_(0xFF)  # every adapter is NaN now
    result = world.run(0, x, y, [Segment(2, 4, (("r8", 1.0),))])
    assert result[2:4].isnan().all()
    assert bits(result[[0, 1, 4, 5]]) == bits(y[[0, 1, 4, 5]])


def test_a_row_reads_no_other_adapters_memory() -> None:
    world = World()
    x, y = make_rows(0, 6)
    segments = [Segment(0, 3, (("r8", 1.0),)), Segment(3, 6, (("r17", 1.0),))]
    before = world.run(0, x, y, segments)
    world.poison(world.page_ids["r17"])
    after = world.run(0, x, y, segments)
    assert bits(after[:3]) == bits(before[:3])
    assert after[3:].isnan().all()


def test_columns_of_slices_that_an_adapter_leaves_alone_keep_their_bits(world: World) -> None:
    x, y = make_rows(0, 4)
    result = world.run(0, x, y, [Segment(0, 4, (("some", 1.0),))])
    assert bits(result[:, 20:29]) == bits(y[:, 20:29])
    assert not torch.equal(result[:, :20], y[:, :20])
    assert not torch.equal(result[:, 29:], y[:, 29:])


def test_a_removed_adapter_is_unknown() -> None:
    world = World()
    world.pool.remove("r8")
    assert "r8" not in world.pool
    assert "r17" in world.pool
    with pytest.raises(KeyError):
        world.lora.plan([Segment(0, 1, (("r8", 1.0),))], {"r8": world.page_ids["r8"]})


def test_an_image_of_the_wrong_size_is_refused(world: World) -> None:
    image = pack(CHECKPOINTS["r8"], "float32", PAGE_BYTES)
    with pytest.raises(ValueError, match="an image of"):
        world.pool.add(image.table, torch.from_numpy(image.pages)[:-1])


def test_metadata_of_another_backend_is_refused(world: World) -> None:
    x, y = make_rows(0, 1)
    with pytest.raises(TypeError, match="another backend"):
        world.lora.run(0, x, y, LoRAMetadata())
