"""FlashInferAttention against the reference, over pages full of NaN: on the fake, and on FlashInfer's own wrappers."""

import gc
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import real_flashinfer
import torch
from fake_flashinfer import ContractError, FakeFlashInfer
from torch import Tensor

from blora.adapters.lora import on_host
from blora.engine.attention import flashinfer as flashinfer_attention
from blora.engine.attention.base import PagedRows
from blora.engine.attention.flashinfer import FP8, FixedDecode, FlashInferAttention
from blora.engine.attention.reference import ReferenceAttention
from blora.engine.memory.arena import Arena, KVLayout
from blora.engine.memory.page_size import page_bytes_for
from blora.engine.model_files.config import ModelConfig, RopeConfig

pytestmark = pytest.mark.slow

NUM_PAGES, MAX_POSITIONS, HEAD_DIM = 60, 100, 64
WINDOWS = (None, 7, 1)  # one for each layer


@pytest.fixture(params=["fake", "real"])
def library(request: pytest.FixtureRequest, real: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeFlashInfer()
    else:
        yield real_flashinfer.with_torch_kernels(real, monkeypatch)
    gc.collect()  # of workspaces of 128 MiB


def make_config(num_heads: int = 4, num_kv_heads: int = 2, head_dim: int = HEAD_DIM) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=10, hidden_size=64, intermediate_size=64, num_layers=len(WINDOWS),
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, rms_norm_eps=1e-5,
        rope=RopeConfig("default", 1e4), max_position_embeddings=MAX_POSITIONS, qkv_bias=False, o_bias=False,
        mlp_bias=False, qk_norm=False, sliding_windows=WINDOWS, tie_word_embeddings=True, dtype="float16",
    )  # fmt: skip


class World:
    """The same random steps on both backends, each with its own arena full of NaN."""

    def __init__(
        self, library: Any, num_rows: int, heads: tuple[int, int] = (4, 2), block_size: int = 4,
        dtype: torch.dtype = torch.float16, soft_cap: float | None = None, kv_dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        self.config, self.dtype, self.heads = make_config(*heads), dtype, heads
        self.kv_dtype = kv_dtype or dtype
        self.arenas = [self._arena(block_size, kv) for kv in (dtype, self.kv_dtype)]
        self.reference = ReferenceAttention(self.arenas[0], heads[0], HEAD_DIM**-0.5)
        self.ours = FlashInferAttention(library, self.arenas[1], self.config, dtype, on_host, soft_cap)
        pages = torch.randperm(NUM_PAGES - 1, generator=torch.Generator().manual_seed(3)).tolist()
        self.tables = [pages[row::num_rows] for row in range(num_rows)]
        self.spare_page = NUM_PAGES - 1
        self.lengths = [0] * num_rows

    def _arena(self, block_size: int, dtype: torch.dtype) -> Arena:
        layout = KVLayout(len(WINDOWS), self.heads[1], HEAD_DIM, block_size, dtype)
        arena = Arena(layout, NUM_PAGES, page_bytes_for(layout.block_bytes, 0) + 64)  # a gap follows each page
        arena.pages.fill_(0xFF)  # NaN in every dtype
        return arena

    def rows(self, new: Sequence[int]) -> PagedRows:
        """The rows of a step. new: the tokens of each row; a row with 0 is not in the step."""
        active = [row for row, count in enumerate(new) if count]
        for row in active:
            self.lengths[row] += new[row]
        return PagedRows(
            [new[row] for row in active], [self.lengths[row] for row in active], [self.tables[row] for row in active]
        )

    def draw(self, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random q, k and v as views of one projection, as in the model."""
        num_heads, num_kv_heads = self.heads
        qkv = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, HEAD_DIM).to(self.dtype)
        return qkv[:, :num_heads], qkv[:, num_heads : num_heads + num_kv_heads], qkv[:, num_heads + num_kv_heads :]

    def step(self, new: Sequence[int]) -> None:
        rows = self.rows(new)
        self.check(rows, self.ours.plan(rows))

    def check(self, rows: PagedRows, metadata: Any) -> None:
        expected_metadata = self.reference.plan(rows)
        for layer, window in enumerate(WINDOWS):
            q, k, v = self.draw(sum(rows.query_lens))
            rounded = (part.to(self.kv_dtype).to(self.dtype) for part in (k, v))
            expected = self.reference.run(layer, q, *rounded, expected_metadata, window)
            actual = self.ours.run(layer, q, k, v, metadata, window)
            assert actual.dtype == self.dtype and actual.is_contiguous()
            tolerance = 0.003 if self.dtype is torch.float16 else 0.02
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


STEPS = {
    "one prompt": [[13], [1], [1]],
    "block by block": [[4], [4], [1], [3]],
    "mixed order": [[0, 5, 9], [1, 1, 6], [7, 1, 1], [1, 1, 1], [1, 3, 1]],
    "decode first": [[4, 4, 4, 4], [1, 1, 2, 5]],
    "prefill first": [[4, 4, 4, 4], [5, 2, 1, 1], [1, 1, 1, 1]],
    "many": [[3, 1, 8, 2, 1, 1], [1, 1, 1, 1, 1, 1], [1, 4, 1, 0, 2, 1], [0, 1, 0, 1, 0, 1]],
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_equal_to_the_reference(library: Any, steps: str, dtype: torch.dtype) -> None:
    world = World(library, len(STEPS[steps][0]), dtype=dtype)
    for new in STEPS[steps]:
        world.step(new)


@pytest.mark.parametrize("heads", [(2, 2), (9, 3), (14, 2), (3, 1)])
def test_any_group_of_heads(library: Any, heads: tuple[int, int]) -> None:
    world = World(library, 2, heads)
    for new in ([5, 1], [1, 6], [1, 1]):
        world.step(new)


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_any_block_size(library: Any, block_size: int) -> None:
    world = World(library, 2, block_size=block_size)
    for new in ([15, 16], [1, 1], [2, 1]):
        world.step(new)


def test_a_soft_cap_bends_the_scores(library: Any) -> None:
    """The reference has no soft cap, so the formula is computed here, for a token that sees two."""
    world = World(library, 1, heads=(1, 1), soft_cap=2.0)
    rows = world.rows([2])
    q, k, v = (part * 4 for part in world.draw(2))
    y = world.ours.run(0, q, k, v, world.ours.plan(rows), None)
    scores = (q[1] @ k[:, 0].T).float() * HEAD_DIM**-0.5
    weights = (2.0 * torch.tanh(scores / 2.0)).softmax(-1)
    assert not torch.allclose(weights, scores.softmax(-1), atol=0.01)
    torch.testing.assert_close(y[1].float(), (weights @ v[:, 0].float())[0], rtol=0.003, atol=0.003)


@pytest.mark.parametrize("kv_dtype", FP8)
def test_kv_of_8_bits(library: Any, kv_dtype: torch.dtype) -> None:
    """The reference gets K and V rounded to 8 bits."""
    world = World(library, 3, kv_dtype=kv_dtype)
    for new in STEPS["mixed order"]:
        world.step(new)


@pytest.mark.parametrize("kv_dtype", FP8)
def test_what_8_bits_cannot_hold_is_the_largest_that_they_can(kv_dtype: torch.dtype) -> None:
    world = World(FakeFlashInfer(), 1, kv_dtype=kv_dtype)
    q, k, v = world.draw(1)
    v[:] = 65504.0
    y = world.ours.run(0, q, k, v, world.ours.plan(world.rows([1])), None)
    assert (y == torch.finfo(kv_dtype).max).all()


def test_kv_of_another_type(library: Any) -> None:
    with pytest.raises(ValueError, match="queries of"):
        World(library, 1, kv_dtype=torch.bfloat16)


# Buffers of a CUDA graph.


def fill_up(world: World, rows: PagedRows, num_rows: int) -> PagedRows:
    """Pads the step with rows that are not compared, on a page of their own."""
    num_more = num_rows - len(rows.query_lens)
    return PagedRows(
        [*rows.query_lens, *[1] * num_more],
        [*rows.seq_lens, *[1] * num_more],
        [*rows.block_tables, *[[world.spare_page]] * num_more],
    )


@pytest.mark.parametrize("steps", [[[1, 1, 1], [1, 1, 1]], [[1, 0, 1], [0, 1, 0], [1, 1, 1]]])
def test_steps_in_fixed_buffers(library: Any, steps: list[list[int]]) -> None:
    world = World(library, 3)
    world.step([3, 9, 4])
    fixed = world.ours.plan_fixed(4, num_pages=20)
    places = [tensor.data_ptr() for tensor in tensors_of(fixed)]
    for new in steps:
        rows = fill_up(world, world.rows(new), 4)
        assert world.ours.refill(fixed, rows)
        world.check(rows, fixed)
        assert [tensor.data_ptr() for tensor in tensors_of(fixed)] == places
        assert fixed.new.positions.tolist() == [length - 1 for length in rows.seq_lens]


@pytest.mark.parametrize(("num_rows", "is_enough"), [(100, True), (1000, False)])
def test_the_workspace_holds_a_partial_result_of_every_row_of_a_graph(
    library: Any, num_rows: int, is_enough: bool
) -> None:
    """With a KV head for each of 36 query heads, 1000 rows take more than the recommended workspace."""
    world = World(library, 1, heads=(36, 36), block_size=1)
    rows = PagedRows([1] * num_rows, [1] * num_rows, [[world.spare_page]] * num_rows)
    recommended = world.ours._workspace
    fixed = world.ours.plan_fixed(num_rows, num_pages=num_rows)
    assert world.ours.refill(fixed, rows)
    workspaces = {wrapper._float_workspace_buffer.data_ptr() for wrapper in fixed.wrappers.values()}
    assert workspaces == {world.ours._workspace.data_ptr()}
    assert (world.ours._workspace is recommended) == is_enough


def tensors_of(fixed: FixedDecode) -> list[Tensor]:
    table = fixed.new.table
    return [fixed.new.rows, fixed.new.positions, table.indptr, table.indices, table.last_page_len]


def test_what_fixed_buffers_do_not_hold_changes_nothing(library: Any) -> None:
    world = World(library, 3)
    world.step([3, 9, 4])
    fixed = world.ours.plan_fixed(3, num_pages=7)
    assert world.ours.refill(fixed, world.rows([1, 1, 1]))
    before = [tensor.clone() for tensor in tensors_of(fixed)]
    rows = PagedRows([1, 1, 1], [5, 11, 6], world.tables)
    for other in (
        replace(rows, query_lens=[1, 2, 1]),
        replace(rows, seq_lens=[5, 13, 6]),
        PagedRows([1, 1], [5, 11], world.tables[:2]),
    ):
        assert not world.ours.refill(fixed, other)
        assert all(map(torch.equal, tensors_of(fixed), before))
    with pytest.raises(ValueError, match="arena"):
        world.ours.refill(fixed, replace(rows, block_tables=[[0, 1, 2, NUM_PAGES]] * 3))


# Shared prefixes.


class SharedWorld(World):
    """Rows 0, 2, 3 and 5 begin with the same 3 pages, rows 1 and 4 with the same 2 others; row 6 shares none."""

    GROUPS = ((0, 2, 3, 5), 3), ((1, 4), 2)

    def __init__(self, library: Any, **options: Any) -> None:
        super().__init__(library, 7, **options)
        for (first, *others), num_pages in self.GROUPS:
            for row in others:
                self.tables[row][:num_pages] = self.tables[first][:num_pages]

    def prefill(self, ends: Sequence[int]) -> None:
        """Computes the rows up to these ends. Only the first row of a group computes the shared pages."""
        num_shared = {row: 4 * num_pages for (_, *others), num_pages in self.GROUPS for row in others}
        firsts = [0 if row in num_shared else end for row, end in enumerate(ends)]
        self.step(firsts)
        for row, length in num_shared.items():
            self.lengths[row] = length
        self.step([end - length for end, length in zip(ends, self.lengths, strict=True)])


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares prefixes however little that saves."""
    monkeypatch.setattr(flashinfer_attention, "WORTHWHILE_BYTES", 1)


def prefixes_of(metadata: Any) -> list[int]:
    """The number of rows of each part that share a prefix."""
    return [part.prefixes.num_rows for part in metadata.parts if part.prefixes is not None]


ENDS = [13, 9, 20, 15, 12, 16, 7]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("new", "num_sharing"),
    [
        ([1, 1, 1, 1, 1, 1, 1], [6]),
        ([1, 0, 1, 0, 0, 0, 1], [2]),
        ([2, 1, 1, 3, 1, 1, 1], [4]),  # beside rows that compute more
        ([0, 1, 1, 0, 0, 0, 1], []),
        ([3, 0, 2, 0, 0, 0, 0], []),
    ],
)
@pytest.mark.usefixtures("sharing")
def test_shared_prefixes_equal_the_reference(
    library: Any, dtype: torch.dtype, new: list[int], num_sharing: list[int]
) -> None:
    world = SharedWorld(library, dtype=dtype)
    world.prefill(ENDS)
    for _ in range(3):
        rows = world.rows(new)
        metadata = world.ours.plan(rows)
        assert prefixes_of(metadata) == num_sharing
        world.check(rows, metadata)


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("kv_dtype", FP8)
def test_shared_prefixes_of_8_bits(library: Any, kv_dtype: torch.dtype) -> None:
    world = SharedWorld(library, kv_dtype=kv_dtype)
    world.prefill(ENDS)
    rows = world.rows([1] * 7)
    metadata = world.ours.plan(rows)
    assert prefixes_of(metadata) == [6]
    world.check(rows, metadata)


def test_shared_prefixes_with_a_soft_cap_give_what_each_row_gives_alone(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference has no soft cap, so each row is compared with itself alone."""
    results = []
    for least in (1, 1 << 40):
        monkeypatch.setattr(flashinfer_attention, "WORTHWHILE_BYTES", least)
        world = SharedWorld(library, soft_cap=1.0)
        for page in range(NUM_PAGES):
            world.arenas[1].kv_layer(0)[page] = torch.randn(2, 2, 4, HEAD_DIM) * 3
        world.lengths = [end - 1 for end in ENDS]
        metadata = world.ours.plan(world.rows([1] * 7))
        assert bool(prefixes_of(metadata)) == (least == 1)
        results.append(world.ours.run(0, *world.draw(7), metadata, None))
    torch.testing.assert_close(*results, rtol=0.003, atol=0.003)


@pytest.mark.usefixtures("sharing")
def test_a_prefix_is_read_once(library: Any) -> None:
    """Only layers without a window read it once; the others read their last tokens as before."""
    if not isinstance(library, FakeFlashInfer):
        pytest.skip("it counts nothing")
    world = SharedWorld(library)
    world.prefill(ENDS)
    metadata = world.ours.plan(world.rows([1] * 7))
    pages = sum(-(-length // 4) for length in world.lengths)
    for layer, (window, expected) in enumerate(zip(WINDOWS, (pages - 3 * 3 - 2, pages, pages), strict=True)):
        before = library.log.num_pages_read
        world.ours.run(layer, *world.draw(7), metadata, window)
        assert library.log.num_pages_read - before == expected


@pytest.mark.usefixtures("sharing")
def test_rows_that_share_are_not_written_into_fixed_buffers(library: Any) -> None:
    world = SharedWorld(library)
    world.prefill(ENDS)
    fixed = world.ours.plan_fixed(3, num_pages=20)
    assert not world.ours.refill(fixed, world.rows([1, 0, 1, 0, 0, 0, 1]))
    rows = fill_up(world, world.rows([0, 1, 0, 1, 0, 0, 0]), 3)
    assert world.ours.refill(fixed, rows)
    world.check(rows, fixed)


def test_little_is_not_worth_a_call(library: Any) -> None:
    world = SharedWorld(library)
    world.prefill(ENDS)
    assert not prefixes_of(world.ours.plan(world.rows([1] * 7)))
    layout = world.ours._layout
    assert flashinfer_attention._least_shared_pages(layout, (None,)) == (128 << 20) / layout.layer_bytes
    assert flashinfer_attention._least_shared_pages(layout, (None, 5)) == 2 * (128 << 20) / layout.layer_bytes
    assert flashinfer_attention._least_shared_pages(layout, (5, 5)) is None


# Refused arguments.

ROWS = PagedRows([2, 1], [5, 3], [[0, 1], [2]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (replace(ROWS, query_lens=[2]), "1 query_lens, 2 seq_lens"),
        (replace(ROWS, query_lens=[0, 1]), "queries"),
        (replace(ROWS, seq_lens=[1, 3]), "queries"),
        (replace(ROWS, seq_lens=[9, 3]), "queries"),
        (replace(ROWS, seq_lens=[MAX_POSITIONS + 1, 3], block_tables=[list(range(40)), [2]]), "queries"),
        (replace(ROWS, block_tables=[[0, -1], [2]]), "arena"),
        (replace(ROWS, block_tables=[[0, 1], [NUM_PAGES]]), "arena"),
    ],
)
def test_rows_that_reach_too_far(rows: PagedRows, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        World(FakeFlashInfer(), 2).ours.plan(rows)


def test_a_plan_is_good_until_the_next(library: Any) -> None:
    world = World(library, 2)
    metadata = world.ours.plan(world.rows([2, 3]))
    world.ours.plan(world.rows([1, 1]))
    with pytest.raises(RuntimeError, match="another step"):
        world.ours.run(0, *world.draw(5), metadata, None)


def test_metadata_of_another_backend() -> None:
    world = World(FakeFlashInfer(), 1)
    rows = world.rows([2])
    with pytest.raises(TypeError, match="ReferenceMetadata"):
        world.ours.run(0, *world.draw(2), world.reference.plan(rows), None)


@pytest.mark.parametrize(("changes", "dtype"), [({"head_dim": 80}, torch.float16), ({}, torch.float32)])
def test_shapes_that_have_no_kernel(changes: dict[str, int], dtype: torch.dtype) -> None:
    config = make_config(**changes)
    layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, 4, dtype)
    arena = Arena(layout, 4, page_bytes_for(layout.block_bytes, 0))
    with pytest.raises(ValueError, match="head_dim: 80 is none of|dtype: float32 is neither"):
        FlashInferAttention(FakeFlashInfer(), arena, config, dtype, on_host)


def test_an_arena_of_another_model() -> None:
    layout = KVLayout(1, 2, HEAD_DIM, 4, torch.float16)
    arena = Arena(layout, 4, page_bytes_for(layout.block_bytes, 0))
    with pytest.raises(ValueError, match="laid out"):
        FlashInferAttention(FakeFlashInfer(), arena, make_config(), torch.float16, on_host)


# The fake has to notice wrong calls.

PLAN = {"q_data_type": torch.float16, "window_left": -1}


@pytest.mark.parametrize(
    "changes",
    [
        {"last_page_len": [0, 3]},
        {"last_page_len": [5, 3]},
        {"indptr": [0, 2, 1]},
        {"indptr": [0, 0, 3]},
        {"indptr": [1, 2, 3]},
        {"indices": [0, 1]},
    ],
)
def test_the_fake_checks_tables(changes: dict[str, list[int]]) -> None:
    tables = {"indptr": [0, 2, 3], "indices": [0, 1, 2], "last_page_len": [1, 3]} | changes
    integers = [torch.tensor(table, dtype=torch.int32) for table in tables.values()]
    workspace = torch.zeros(128 << 20, dtype=torch.uint8)
    wrapper = FakeFlashInfer().BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
    with pytest.raises(ContractError):
        wrapper.plan(*integers, 4, 2, 64, 4, **PLAN)


@pytest.mark.parametrize("which", range(3))
def test_the_fake_wants_int32(which: int) -> None:
    tables = [torch.tensor(table, dtype=torch.int32) for table in ([0, 2, 3], [0, 1, 2], [1, 3])]
    workspace = torch.zeros(128 << 20, dtype=torch.uint8)
    wrapper = FakeFlashInfer().BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
    wrapper.plan(*tables, 4, 2, 64, 4, **PLAN)
    tables[which] = tables[which].long()
    with pytest.raises(ContractError, match="int64"):
        wrapper.plan(*tables, 4, 2, 64, 4, **PLAN)


def test_the_fake_checks_types_and_strides() -> None:
    tables = [torch.tensor(table, dtype=torch.int32) for table in ([0, 1], [0], [1])]
    workspace = torch.zeros(128 << 20, dtype=torch.uint8)
    wrapper = FakeFlashInfer().BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
    wrapper.plan(*tables, 4, 2, 64, 4, **PLAN)
    cache, q = torch.zeros(2, 2, 4, 64).half(), torch.zeros(1, 4, 64).half()
    other = torch.zeros(2, 4, 2, 64).half().transpose(1, 2)
    wrapper.run(q, (cache, cache))
    for arguments, message in (
        ((q.bfloat16(), (cache, cache)), "bfloat16"),
        ((q, (cache, cache.bfloat16())), "bfloat16"),
        ((q, (cache, other)), "strides"),
        ((q[:, :3], (cache, cache)), "q: "),
        ((q, (cache[:0], cache[:0])), "outside"),
    ):
        with pytest.raises(ContractError, match=message):
            wrapper.run(*arguments)


def test_all_orders_of_one_step(library: Any) -> None:
    for new in itertools.permutations([1, 1, 4]):
        world = World(library, 3)
        world.step([2, 5, 3])
        world.step(new)
