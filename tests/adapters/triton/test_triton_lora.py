"""TritonLoRA against the reference, in Triton's interpreter."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton_world import (
    CHECKPOINTS,
    EMBEDDING,
    HEAD,
    NORM,
    RANKS,
    SHAPES,
    TARGETS,
    VOCABULARY,
    Use,
    World,
    assert_near,
    segments_of,
)

from blora.adapters import pack
from blora.adapters.device_pool import DevicePool
from blora.adapters.layout import Layout
from blora.adapters.lora import LoRAMetadata, Segment
from blora.adapters.triton import kernels, step_table
from blora.adapters.triton import lora as triton_lora
from blora.adapters.triton.adapter_table import MAX_ARENA_BYTES, make_adapter_table
from blora.adapters.triton.lora import TritonLoRA
from blora.adapters.triton.sites import lay_out_sites
from blora.adapters.triton.step_table import StepSize

pytestmark = pytest.mark.slow

Runs = list[tuple[int, list[Use]]]

POPULARITY: dict[str, Runs] = {
    "distinct": [(1, [(f"r{rank}", 1.0)]) for rank in (1, 7, 16, 61)],
    "uniform": [(6, [(f"r{rank}", 1.0)]) for rank in (2, 11, 32)],
    "skewed": [(2, []), (19, [("r8", 1.0)]), (3, [("r2", 1.0)]), (1, [("r64", 1.0)]), (1, [("some", 1.0)])],
    "identical": [(17, [("r17", 1.0)])],
    "base between": [(2, [("r1", 1.0)]), (4, []), (1, [("some", 1.0)]), (3, [])],
    "several": [(3, [("r8", 0.5), ("r61", 1.5)]), (1, []), (2, [("some", 1.0), ("bias", 1.0), ("r1", -1.0)])],
    "scaled": [(2, [("r8", 0.5)]), (2, [("r8", -2.0)]), (2, [("r8", 0.0)])],
    "gain and shift": [(1, [("dora", 1.0)]), (1, []), (2, [("bias", 0.5)]), (1, [("bias", 1.0)])],
}


@pytest.mark.parametrize("site", SHAPES)
@pytest.mark.parametrize("popularity", POPULARITY)
def test_equal_to_the_reference(popularity: str, site: int, world: World) -> None:
    world.check(site, *segments_of(POPULARITY[popularity]))


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_every_rank(num_tokens: int, world: World) -> None:
    """Rows are multiplied one by one, and as rows of a strip."""
    for rank in RANKS:
        world.check(0, [Segment(1, 1 + num_tokens, ((f"r{rank}", 1.0),))], num_tokens + 2)


def test_long_segments_are_taken_in_long_strips(world: World) -> None:
    segments, num_tokens = segments_of([(70, [("r16", 1.0)]), (1, []), (2, [("dora", 1.0)])])
    assert step_table.choose_block_rows(segments) == 64
    world.check(2, segments, num_tokens)


@pytest.mark.parametrize(
    ("lengths", "block_rows"), [((1,), 1), ((2, 2), 1), ((1, 1, 4), 1), ((3,), 16), ((63,), 16), ((1, 64), 64)]
)
def test_rows_of_a_strip(lengths: Sequence[int], block_rows: int) -> None:
    segments, _ = segments_of([(length, [("r8", 1.0)]) for length in lengths])
    assert step_table.choose_block_rows(segments) == block_rows


@pytest.mark.parametrize("block_rows", [1, 16, 64])
def test_the_variants_agree(block_rows: int, exact: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_lora, "choose_block_rows", lambda _: block_rows)
    exact.check(3, *segments_of([(2, [("r17", 1.0)]), (1, [("r4", 1.0), ("r64", 0.5)])]))


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().view(torch.uint8).flatten().tolist()


@pytest.mark.parametrize("block_rows", [1, 16])
def test_planes_change_no_bit(block_rows: int, exact: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch decides whether each split of the inputs has programs of its own."""
    monkeypatch.setattr(triton_lora, "choose_block_rows", lambda _: block_rows)
    segments, num_tokens = segments_of([(3, [("r17", 1.0)])])
    x, y = exact.rows(3, num_tokens)
    split = exact.run(exact.triton, 3, x, y, segments)
    monkeypatch.setattr(step_table, "MANY_PROGRAMS", 0)
    assert bits(exact.run(exact.triton, 3, x, y, segments)) == bits(split)


@pytest.mark.parametrize("block_rows", [1, 16])
def test_a_row_does_not_depend_on_the_others(block_rows: int, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_lora, "choose_block_rows", lambda _: block_rows)
    x, y = world.rows(3, 6)
    use = (("r8", 1.0),)
    alone = world.run(world.triton, 3, x, y, [Segment(2, 3, use)])[2]
    segments = [Segment(0, 1, (("r64", 1.0),)), Segment(1, 4, use), Segment(4, 6, (("r1", 2.0),))]
    assert bits(world.run(world.triton, 3, x, y, segments)[2]) == bits(alone)


def test_base_rows_read_no_adapter_memory_and_nobody_anothers() -> None:
    world = World(torch.float32)
    x, y = world.rows(0, 6)
    segments = [Segment(1, 3, (("r8", 1.0),)), Segment(3, 5, (("r17", 1.0),))]
    before = world.run(world.triton, 0, x, y, segments)
    world.triton.pool.pages[torch.tensor(world.triton.page_ids["r17"])] = 0xFF
    after = world.run(world.triton, 0, x, y, segments)
    assert bits(after[:3]) == bits(before[:3])
    assert after[3:5].isnan().all()
    assert bits(after[5]) == bits(y[5])


def test_a_row_of_nan_spoils_no_other(exact: World) -> None:
    segments, num_tokens = segments_of([(6, [("r8", 1.0)])])
    x, y = exact.rows(0, num_tokens)
    before = exact.run(exact.triton, 0, x, y, segments)
    x[2] = torch.nan
    after = exact.run(exact.triton, 0, x, y, segments)
    assert after[2].isnan().all()
    assert bits(after[[0, 1, 3, 4, 5]]) == bits(before[[0, 1, 3, 4, 5]])


def test_rows_may_be_strided(exact: World) -> None:
    segments, num_tokens = segments_of([(3, [("r8", 1.0)])])
    x, y = exact.rows(1, num_tokens)
    expected = exact.run(exact.triton, 1, x, y, segments)
    wide_x, wide_y = torch.full((3, 170), torch.nan), torch.full((3, 180), 7.0)
    wide_x[:, :160], wide_y[:, 8:168] = x, y
    metadata = exact.triton.lora.plan(segments, exact.triton.page_ids)
    exact.triton.lora.run(1, wide_x[:, :160], wide_y[:, 8:168], metadata)
    assert bits(wide_y[:, 8:168]) == bits(expected)
    assert (wide_y[:, :8] == 7).all() and (wide_y[:, 168:] == 7).all()


TOKEN_MODULES: Runs = [
    (2, [("embedding and head", 1.0)]),
    (1, []),
    (1, [("rows", 1.0)]),
    (2, [("all-rows", 1.0)]),
    (2, [("dora", 1.0)]),
]


def test_the_head(world: World) -> None:
    world.check(HEAD, *segments_of(TOKEN_MODULES))
    assert world.triton.lora.changes_head("rows") and not world.triton.lora.changes_head("r8")


def test_the_embedding(world: World) -> None:
    segments, num_tokens = segments_of(TOKEN_MODULES)
    token_ids = torch.tensor([3, 0, 7, 150, 299, 5, 151, 3])
    _, y = world.rows(EMBEDDING, num_tokens)
    result = world.embed(world.triton, token_ids, y, segments)
    assert_near(result, world.embed(world.reference, token_ids, y, segments), world.dtype)
    assert bits(result[2]) == bits(y[2])
    assert len(token_ids) == num_tokens and int(token_ids.max()) < VOCABULARY


def test_pages_that_were_given_up_are_not_read_again() -> None:
    world = World(torch.float32)
    placed = world.triton
    x, y = world.rows(0, 2)
    segments = [Segment(0, 2, (("some", 1.0),))]
    before = world.run(placed, 0, x, y, segments)
    old, new = placed.page_ids["some"], placed.page_ids["r128"][: len(placed.page_ids["some"])]
    placed.pool.copy("some", 0, new)
    placed.pool.pages[torch.tensor(old)] = 0xFF
    placed.page_ids["some"] = new
    assert bits(world.run(placed, 0, x, y, segments)) == bits(before)


def test_a_site_without_modules_is_left_alone(exact: World) -> None:
    x, y = exact.rows(0, 1)
    assert bits(exact.run(exact.triton, 17, x, y, [Segment(0, 1, (("r8", 1.0),))])) == bits(y)


def test_norms_are_found_for_the_tokens_of_their_adapters(exact: World) -> None:
    """Such a step is not one that a graph replays."""
    uses = ("norm 3", 1.0), ("r8", 1.0), ("norm 2", 1.0)
    segments = [Segment(start, start + 2, (use,)) for start, use in zip((1, 3, 6), uses, strict=True)]
    for placed in (exact.triton, exact.reference):
        norms = placed.lora.plan(segments, placed.page_ids).norms
        assert [(use.start, use.end, set(use.weight.tolist())) for use in norms.at(NORM)] == [(1, 3, {3}), (6, 8, {2})]
        assert not norms.at(HEAD) and not placed.lora.plan(segments[1:2], placed.page_ids).norms
    lora = exact.triton.lora
    assert isinstance(lora, TritonLoRA)
    fixed = lora.plan_fixed(StepSize(1, 8, 8, 8, 4), num_programs=1)
    assert not lora.refill(fixed, lora.plan(segments, exact.triton.page_ids))


def test_what_cannot_be_read_is_refused(exact: World) -> None:
    pages = torch.zeros(4, 1 << 14, dtype=torch.uint8)
    with pytest.raises(ValueError, match="in the layout cpu, not gpu"):
        TritonLoRA(DevicePool(pages, torch.float32), TARGETS)
    with pytest.raises(ValueError, match="no bfloat16"):
        TritonLoRA(DevicePool(pages, torch.bfloat16, Layout.GPU), TARGETS)
    with pytest.raises(ValueError, match="cannot be numbered"):
        TritonLoRA(DevicePool(pages[:, :100], torch.float32, Layout.GPU), TARGETS)
    lora, (x, y) = exact.triton.lora, exact.rows(1, 2)
    with pytest.raises(TypeError, match="another backend"):
        lora.run(1, x, y, LoRAMetadata())
    with pytest.raises(ValueError, match="comes after"):
        lora.plan([Segment(2, 4, (("r8", 1.0),)), Segment(0, 1, (("r8", 1.0),))], exact.triton.page_ids)
    with pytest.raises(ValueError, match="of the arena's"):
        lora.plan([Segment(0, 1, (("r8", 1.0),))], {"r8": [0]})
    metadata = lora.plan([Segment(0, 1, (("r8", 1.0),))], exact.triton.page_ids)
    for bad_x, bad_y in ((x.half(), y), (x, y.half()), (x[:, :-1], y), (x.T.contiguous().T, y)):
        with pytest.raises(ValueError, match="of 160 inputs"):
            lora.run(1, bad_x, bad_y, metadata)


class Compiler:
    """Replaces a kernel: records what Triton would compile for each launch, and runs nothing."""

    def __init__(self, kernel: Any, compiled: set[Any]) -> None:
        self._kernel, self._compiled = kernel, compiled

    def __getitem__(self, _: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            kinds = [self._kind(name, value) for name, value in zip(self._kernel.arg_names, args, strict=False)]
            self._compiled.add((self._kernel.__name__, *kinds, *sorted(constants.items())))

        return launch

    def _kind(self, name: str, value: Any) -> Any:
        """The kind of an argument: its type, and the facts about its value that Triton compiles for."""
        options = self._kernel.kwargs
        if isinstance(value, Tensor):
            is_open = name in options["do_not_specialize_on_alignment"]
            return value.dtype, not is_open and value.data_ptr() % 16 == 0
        return "int" if name in options["do_not_specialize"] else (value == 1, value % 16 == 0)


@pytest.mark.parametrize("block_rows", [1, 16, 64])
def test_no_step_compiles_what_was_not_compiled_before(
    block_rows: int, exact: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps with odd and with even numbers of uses: their tables begin at different alignments."""
    compiled: set[Any] = set()
    for name in ("shrink", "expand"):
        monkeypatch.setattr(kernels, name, Compiler(getattr(kernels, name), compiled))
    monkeypatch.setattr(triton_lora, "choose_block_rows", lambda _: block_rows)
    lora = exact.triton.lora
    assert isinstance(lora, TritonLoRA)
    lora.warm_up()
    at_start = set(compiled)
    for runs in POPULARITY.values():
        segments, num_tokens = segments_of(runs)
        for site in SHAPES:
            exact.run(exact.triton, site, *exact.rows(site, num_tokens), segments)
    assert compiled == at_start


@triton.jit
def locate(table, arena, found):  # type: ignore[no-untyped-def]
    """Stores the offset of a piece in the arena, in bytes."""
    tl.store(found, kernels.find_piece(table, 0, arena, 2).to(tl.int64) - arena.to(tl.int64))


def test_pieces_are_found_in_the_largest_arena() -> None:
    """On a GPU with 192 GB, the numbers of lines need more than 31 bits."""
    page_bytes, cpu = 1 << 30, torch.device("cpu")
    table = pack(CHECKPOINTS["r8"], "float16", 1 << 20, Layout.GPU).table
    assert table.num_pages == 1  # so that every piece has the place that it would have in a larger page
    table = replace(table, page_bytes=page_bytes)
    content = make_adapter_table(table, [190], lay_out_sites(TARGETS, cpu), 2, cpu).content
    found = torch.zeros(1, dtype=torch.int64)
    locate[(1,)](content[content[1] :], torch.zeros(1, dtype=torch.float16), found)
    chunk = table.modules[0].a[0][0]
    assert found.item() == 190 * page_bytes + chunk.offset
    assert MAX_ARENA_BYTES == 256 << 30


GRAPH = StepSize(block_rows=1, num_uses=8, num_strips=6, num_rows=8, num_groups=4)


@pytest.mark.parametrize("num_programs", [1, 7, 400])
def test_a_fixed_grid_computes_whatever_step_is_filled_in(num_programs: int, exact: World) -> None:
    placed, (x, y) = exact.triton, exact.rows(0, 5)
    lora = placed.lora
    assert isinstance(lora, TritonLoRA)
    fixed = lora.plan_fixed(GRAPH, num_programs)
    addresses = [part.data_ptr() for part in (*fixed.parts, fixed.h)]
    result = y.clone()
    lora.run(0, x, result, fixed)  # the first run of a capture has no work
    assert bits(result) == bits(y)
    for runs in ([(1, []), (2, [("r64", 1.0)])], [(2, [("r1", 2.0), ("r8", 1.0)])], [(1, [("gains", 1.0)])] * 2):
        segments, _ = segments_of(runs)
        assert lora.refill(fixed, lora.plan(segments, placed.page_ids))
        result = y.clone()
        lora.run(0, x, result, fixed)
        assert bits(result) == bits(exact.run(placed, 0, x, y, segments))
    assert addresses == [part.data_ptr() for part in (*fixed.parts, fixed.h)]


@pytest.mark.parametrize(
    "runs",
    [
        [(7, [("r1", 1.0)])],  # strips
        [(3, [("r1", 1.0), ("r2", 1.0), ("r4", 1.0)])],  # uses
        [(5, [("r128", 1.0)])],  # scratch
        [(1, [("rows", 1.0)])],  # the kernels do not compute all
    ],
)
def test_a_step_that_does_not_fit_is_left_to_plan(runs: Runs, exact: World) -> None:
    lora = exact.triton.lora
    assert isinstance(lora, TritonLoRA)
    fixed = lora.plan_fixed(GRAPH, 4)
    assert lora.refill(fixed, lora.plan([Segment(0, 1, (("r8", 1.0),))], exact.triton.page_ids))
    before = fixed.content.clone()
    assert not lora.refill(fixed, lora.plan(segments_of(runs)[0], exact.triton.page_ids))
    assert torch.equal(fixed.content, before)
