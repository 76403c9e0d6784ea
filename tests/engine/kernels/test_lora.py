"""Native LoRA, inside the packed multiplication, against a float64 sum. Its bits depend on no other row, and it reads
nothing outside the adapters' chunks: everything around them is NaN."""

from collections.abc import Sequence

import pytest
import torch
from compute_threads import compute_threads
from kernel_cases.lora_world import Adapter, LoRAWorld, Site, Uses, segments_of, uses_of
from torch import Tensor

from blora.adapters.lora import Segment
from blora.engine.kernels.library import Epilogue, Kernels

SITES = {
    "one": Site(40, 48, ((0, 48),)),
    "heads of 8": Site(40, 40, ((0, 24), (24, 8), (32, 8)), has_bias=True),
    "whole panels": Site(64, 96, ((0, 64), (64, 16), (80, 16))),
    "odd widths": Site(24, 45, ((0, 20), (20, 9), (29, 16)), has_bias=True),
    "single outputs": Site(24, 21, ((3, 1), (15, 1), (16, 1), (20, 1))),
    "across patches": Site(40, 1100, ((0, 500), (500, 30), (530, 570)), has_bias=True),
    "gate and up": Site(40, 192, ((0, 96), (96, 96)), has_bias=True),
}
EVERYWHERE = (16, 4, 9, 21)  # a rank for each slice
TOKENS = [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 16, 24, 25, 31, 95, 96, 97, 191, 193, 300]
SEGMENT_SIZES = [1, 2, 3, 15, 16, 17, 33, 47, 96, 97]
FLOAT = [Epilogue.STORE, Epilogue.STORE_FLOAT, Epilogue.ADD]

A: Uses = (("a", 1.0),)
B: Uses = (("b", 1.0),)
BASE: Uses = ()


def make_world(kernels: Kernels, dtype: torch.dtype, site: Site, *ranks: Sequence[int]) -> LoRAWorld:
    """A world with adapters a, b, c, ... of these ranks, one for each slice."""
    adapters = {
        chr(ord("a") + index): Adapter(tuple(own[: len(site.slices)]), 0.5 + index) for index, own in enumerate(ranks)
    }
    return LoRAWorld(kernels, dtype, site, adapters)


@pytest.mark.parametrize("page_bytes", [1024, 1 << 16], ids=["pieces", "matrices"])
def test_every_rank(kernels: Kernels, dtype: torch.dtype, page_bytes: int) -> None:
    """Pages may hold a single piece, or whole matrices."""
    site = SITES["heads of 8"]
    for rank in range(1, 71):
        world = LoRAWorld(kernels, dtype, site, {"a": Adapter((rank, rank % 20 + 1, 71 - rank))}, page_bytes, rank)
        for num_tokens in (1, 3, 9):
            world.check(world.rows(num_tokens), Epilogue.STORE_FLOAT, [Segment(0, num_tokens, A)])


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("epilogue", FLOAT, ids=lambda epilogue: epilogue.name)
def test_slices_anywhere(kernels: Kernels, dtype: torch.dtype, name: str, epilogue: Epilogue) -> None:
    world = make_world(kernels, dtype, SITES[name], EVERYWHERE, (64, 0, 13, 1))
    for num_tokens in TOKENS:
        half = num_tokens // 2
        world.check(world.rows(num_tokens), epilogue, segments_of([(half, A), (num_tokens - half, B)]))


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("epilogue", FLOAT, ids=lambda epilogue: epilogue.name)
def test_gains_and_shifts(kernels: Kernels, dtype: torch.dtype, name: str, epilogue: Epilogue) -> None:
    """Gains and shifts of adapters with and without ranks, beside adapters that have neither."""
    site = SITES[name]
    num_slices = len(site.slices)
    adapters = {
        "a": Adapter(EVERYWHERE[:num_slices], has_gain_shift=True),
        "b": Adapter((0,) * num_slices, has_gain_shift=True),
        "c": Adapter(EVERYWHERE[:num_slices]),
    }
    world = LoRAWorld(kernels, dtype, site, adapters)
    runs: list[tuple[int, Uses]] = [
        (3, A),
        (5, B),
        (2, BASE),
        (99, A),
        (1, (("c", 1.0),)),
        (4, (("c", 0.5), ("b", 2.0))),
    ]
    num_tokens = sum(count for count, _ in runs)
    x, before = world.rows(num_tokens), world.before(num_tokens, epilogue)
    y = world.run(x, epilogue, segments_of(runs), before)
    world.assert_near(x, epilogue, segments_of(runs), before, y)
    assert torch.equal(y, world.solo(x, epilogue, uses_of(runs), before))


@pytest.mark.parametrize("width", [16, 48, 96, 528])
def test_the_change_comes_before_the_gate(kernels: Kernels, dtype: torch.dtype, width: int) -> None:
    world = make_world(kernels, dtype, Site(40, 2 * width, ((0, width), (width, width)), True), (16, 12), (0, 5))
    for num_tokens in TOKENS:
        half = num_tokens // 2
        world.check(world.rows(num_tokens), Epilogue.SILU_MUL, segments_of([(half, A), (num_tokens - half, B)]))


def test_every_number_of_inputs(kernels: Kernels, dtype: torch.dtype) -> None:
    """The numbers lie around the ends of units, lines and pieces, for each width of groups."""
    step = 4 // dtype.itemsize
    for in_ in [
        *range(step, 70, step),
        *(near * step for size in (64, 128, 256) for near in (size - 1, size, size + 1)),
    ]:
        world = make_world(kernels, dtype, Site(in_, 32, ((0, 32),)), (16,), (8,), (4,), (28,))
        runs: list[tuple[int, Uses]] = [(3, ((name, 1.0),)) for name in "abcd"]
        world.check(world.rows(12), Epilogue.STORE_FLOAT, segments_of(runs))


MIXTURES: dict[str, list[tuple[int, Uses]]] = {
    "base only": [(9, BASE)],
    "base between": [(2, BASE), (3, A), (4, BASE), (1, B), (1, BASE)],
    "one token": [(1, A)],
    "distinct": [(1, A), (1, B), (1, (("c", 1.0),)), (1, BASE)],
    "uniform": [(20, A), (20, B), (20, (("c", 1.0),)), (20, BASE)],
    "skewed": [(100, A), (3, B), (1, (("c", 1.0),)), (2, BASE)],
    "identical": [(33, A)],
    "scaled": [(4, (("a", 0.5),)), (4, (("a", -2.0),)), (4, (("a", 0.0),)), (4, (("a", 1e-3),))],
    "composed": [(5, (("a", 0.5), ("b", 1.5))), (2, (("c", 1.0), ("b", -1.0), ("a", 0.25)))],
    "the same twice": [(4, (("a", 0.5), ("a", 0.25)))],
    "in pieces": [(3, A), (2, A), (4, A)],
}


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("name", ["heads of 8", "whole panels"])
def test_mixtures(kernels: Kernels, dtype: torch.dtype, name: str, mixture: str) -> None:
    world = make_world(kernels, dtype, SITES[name], EVERYWHERE, (5, 0, 40), (0, 1, 0))
    runs = MIXTURES[mixture]
    x = world.rows(len(uses_of(runs)))
    for epilogue in FLOAT:
        world.check(x, epilogue, segments_of(runs))


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize(
    ("name", "epilogue"), [*(("heads of 8", each) for each in FLOAT), ("gate and up", Epilogue.SILU_MUL)]
)
def test_a_row_has_the_same_bits_in_any_company(
    kernels: Kernels, dtype: torch.dtype, name: str, mixture: str, epilogue: Epilogue
) -> None:
    """A row is computed alone, and among so many base rows that threads share the work."""
    world = make_world(kernels, dtype, SITES[name], EVERYWHERE, (5, 0, 40), (0, 1, 0))
    for runs in (MIXTURES[mixture], [(40, BASE), *MIXTURES[mixture], (60, BASE)]):
        uses = uses_of(runs)
        x, before = world.rows(len(uses)), world.before(len(uses), epilogue)
        alone = world.solo(x, epilogue, uses, before)
        for num_threads in (1, 2, 3):
            with compute_threads(kernels, num_threads):
                together = world.run(x, epilogue, segments_of(runs), before)
                plain = world.run(x, epilogue, None, before)
            assert torch.equal(together, alone), num_threads
            assert_changed(together, plain, uses)


def assert_changed(together: Tensor, plain: Tensor, uses: Sequence[Uses]) -> None:
    """By adapters, and by nothing else. plain: without them. uses: of each token."""
    is_base = torch.tensor([not own for own in uses])
    assert torch.equal(together[is_base], plain[is_base])
    is_changed = torch.tensor([bool(own) and all(scale for _, scale in own) for own in uses])
    assert (together != plain).any(dim=1)[is_changed].all(), "an adapter that changes nothing proves nothing"


@pytest.mark.parametrize(
    "runs", [[(300, A)], [(150, A), (100, BASE), (50, B)], [(3, own) for own in (A, B, BASE)] * 30]
)
def test_threads_cut_large_batches_anywhere(
    kernels: Kernels, dtype: torch.dtype, num_threads: int, runs: list[tuple[int, Uses]]
) -> None:
    world = make_world(kernels, dtype, Site(130, 128, ((0, 64), (64, 24), (88, 40))), EVERYWHERE, (70, 3, 8))
    uses = uses_of(runs)
    x, before = world.rows(len(uses)), world.before(len(uses), Epilogue.STORE_FLOAT)
    assert kernels.num_threads == num_threads
    together = world.run(x, Epilogue.STORE_FLOAT, segments_of(runs), before)
    kernels.num_threads = 1
    assert torch.equal(together, world.solo(x, Epilogue.STORE_FLOAT, uses, before))


@pytest.mark.parametrize(("in_", "page_bytes"), [(30, 1 << 16), (256, 1 << 16), (274, 1024), (576, 1 << 13)])
def test_a_row_has_the_same_bits_in_a_segment_of_any_size(
    kernels: Kernels, dtype: torch.dtype, num_threads: int, in_: int, page_bytes: int
) -> None:
    """Few rows and many rows are computed in different ways."""
    site = Site(in_, 144, ((0, 48), (48, 80), (128, 16)))
    ranks = {"a": (16, 16, 16), "b": (8, 4, 8), "c": (4, 28, 12), "d": (64, 0, 70)}
    adapters = {name: Adapter(own, 0.5) for name, own in ranks.items()}
    world = LoRAWorld(kernels, dtype, site, adapters, page_bytes)
    x, before = world.rows(97), world.before(97, Epilogue.STORE_FLOAT)
    assert kernels.num_threads == num_threads
    for uses in (A, B, (("c", 1.0),), (("d", 1.0), ("b", -0.5))):
        kernels.num_threads = 1
        alone = world.solo(x, Epilogue.STORE_FLOAT, [uses] * 97, before)
        kernels.num_threads = num_threads
        for size in SEGMENT_SIZES:
            together = world.run(x[:size], Epilogue.STORE_FLOAT, [Segment(0, size, uses)], before[:size])
            assert torch.equal(together, alone[:size])
        runs = [(size, uses) for size in (1, 33, 2, 17, 15, 16, 13)]
        assert torch.equal(world.run(x, Epilogue.STORE_FLOAT, segments_of(runs), before), alone)


# Exponents of x, (from, below), and the request's scale. With these, sums are rounded in ways of their own.
@pytest.mark.parametrize(
    ("exponents", "scale"),
    [((-130, -115), 1.0), ((-20, 0), 2.0**-120), ((-133, 1), 2.0**-60), ((110, 127), 1.0), ((60, 70), 2.0**60)],
    ids=["small x", "small h", "all", "large x", "large h"],
)
def test_a_row_has_the_same_bits_at_the_ends_of_the_range(
    kernels: Kernels, dtype: torch.dtype, exponents: tuple[int, int], scale: float
) -> None:
    world = make_world(kernels, dtype, Site(270, 64, ((0, 64),)), (16,), (8,), (4,), (28,))
    generator = torch.Generator().manual_seed(0)
    x = (world.rows(33).double() * 2.0 ** torch.randint(*exponents, (33, 270), generator=generator)).to(dtype)
    x[3, 5], x[20, 269], x[32, 31] = torch.nan, torch.inf, -torch.inf
    before = world.before(33, Epilogue.STORE_FLOAT)
    for name in "abcd":
        uses = ((name, scale),)
        alone = world.solo(x, Epilogue.STORE_FLOAT, [uses] * 33, before)
        for size in SEGMENT_SIZES[1:6]:
            together = world.run(x[:size], Epilogue.STORE_FLOAT, [Segment(0, size, uses)], before[:size])
            assert torch.equal(bits(together), bits(alone[:size]))


def bits(y: torch.Tensor) -> torch.Tensor:
    """The bits, in which the sign of a zero counts; all NaN are the same."""
    return y.nan_to_num(torch.nan, torch.inf, -torch.inf).view(torch.int32)


def test_a_site_that_an_adapter_leaves_alone_keeps_its_bits(kernels: Kernels, dtype: torch.dtype) -> None:
    world = make_world(kernels, dtype, SITES["heads of 8"], (0, 0, 0), (0, 4, 0))
    x, before = world.rows(6), world.before(6, Epilogue.STORE)
    plain = world.run(x, Epilogue.STORE, None, before)
    assert torch.equal(world.run(x, Epilogue.STORE, [Segment(0, 6, A)], before), plain)
    changed = world.run(x, Epilogue.STORE, [Segment(2, 5, B)], before)
    is_same = changed == plain
    assert is_same[:, :24].all() and is_same[:, 32:].all() and is_same[[0, 1, 5]].all()
    assert not is_same[2:5, 24:32].any(dim=1).all()


def test_a_row_reads_no_other_adapters_memory(kernels: Kernels, dtype: torch.dtype) -> None:
    world = make_world(kernels, dtype, SITES["odd widths"], EVERYWHERE, EVERYWHERE)
    runs: list[tuple[int, Uses]] = [(3, A), (4, BASE), (3, B)]
    x, before = world.rows(10), world.before(10, Epilogue.STORE)
    expected = world.run(x, Epilogue.STORE, segments_of(runs), before)
    world.poison("b")
    y = world.run(x, Epilogue.STORE, segments_of(runs), before)
    assert torch.equal(y[:7], expected[:7])
    assert y[7:].isnan().all()


def test_a_row_that_is_not_finite_leaves_the_others_alone(kernels: Kernels, dtype: torch.dtype) -> None:
    world = make_world(kernels, dtype, SITES["heads of 8"], EVERYWHERE)
    x, before = world.rows(30), world.before(30, Epilogue.STORE)
    expected = world.run(x, Epilogue.STORE, [Segment(2, 28, A)], before)
    x[4, 3], x[17] = torch.nan, torch.inf
    y = world.run(x, Epilogue.STORE, [Segment(2, 28, A)], before)
    assert not y[4].isfinite().any() and not y[17].isfinite().any()
    others = [row for row in range(30) if row not in (4, 17)]
    assert torch.equal(y[others], expected[others])
