"""Wrong sizes, dtypes, block tables and segments raise a Python error before a kernel sees them, never a signal."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from kernel_cases.attention_world import Shape, World, make_arena
from kernel_cases.lora_world import NUM_SITES, SITE, Adapter, LoRAWorld, Site
from torch import Tensor

from blora.adapters.device_pool import DevicePool
from blora.adapters.lora import LoRAMetadata, Segment
from blora.engine.attention.base import AttentionMetadata, PagedRows
from blora.engine.attention.cpu import CpuAttention
from blora.engine.kernels.library import Epilogue, Kernels
from blora.engine.memory.arena import KVLayout
from blora.engine.memory.page_size import page_bytes_for

REFUSED = (ValueError, TypeError, IndexError, KeyError, OverflowError)

LENGTH, BLOCK = 20, 16  # two blocks
HUGE = 2**31


# Attention: rows of a step.


def attention_world(kernels: Kernels) -> World:
    return World(kernels, Shape(block_size=BLOCK), torch.float32, [LENGTH])


ROWS: list[object] = [
    pytest.param(([4], [HUGE], [[0, 1]]), id="sequence beyond int32"),
    pytest.param(([HUGE], [HUGE], [[0, 1]]), id="queries beyond int32"),
    pytest.param(([4], [LENGTH], [[0, HUGE]]), id="page beyond int32"),
    pytest.param(([4], [LENGTH], [[0, 2**70]]), id="page beyond int64"),
    pytest.param(([4], [LENGTH], [["a", "b"]]), id="pages of text"),
    pytest.param(([4], [LENGTH], [None]), id="no table"),
    pytest.param(([4], [LENGTH], [[0, 5]]), id="page behind the arena"),
    pytest.param(([4], [LENGTH], [[0, HUGE - 1]]), id="page far behind the arena"),
    pytest.param(([4], [LENGTH], [[0, -1]]), id="page before the arena"),
    pytest.param(([4], [LENGTH], [[0]]), id="table too short"),
    pytest.param(([4], [LENGTH], [[]]), id="empty table"),
    pytest.param(([1], [LENGTH + 1], [[0, 1]]), id="position beyond the rope table"),
    pytest.param(([1], [HUGE - 1], [[0, 1]]), id="position far beyond"),
    pytest.param(([5], [4], [[0]]), id="more queries than tokens"),
    pytest.param(([1], [0], [[0]]), id="empty sequence"),
    pytest.param(([1], [-1], [[0]]), id="sequence of negative length"),
    pytest.param(([0], [4], [[0]]), id="no query"),
    pytest.param(([4, -1], [4, 4], [[0], [1]]), id="negative number of queries"),
    pytest.param(([4], [4, 4], [[0], [1]]), id="query_lens too short"),
    pytest.param(([4, 4], [4], [[0], [1]]), id="seq_lens too short"),
    pytest.param(([4, 4], [4, 4], [[0]]), id="block_tables too short"),
]


@pytest.mark.parametrize("rows", ROWS)
def test_rows_that_cannot_be_attended(
    kernels: Kernels, rows: tuple[Sequence[int], Sequence[int], Sequence[Sequence[int]]]
) -> None:
    with pytest.raises(REFUSED):
        attention_world(kernels).attention.plan(PagedRows(*rows))


def test_rows_at_the_very_end_are_attended(kernels: Kernels) -> None:
    """Rows on the last page, at the last position of the rope table, with all queries."""
    world = attention_world(kernels)
    tables = [[world.arena.num_pages - 1, 0]]
    plan = world.attention.plan(PagedRows([LENGTH], [LENGTH], tables))
    y = torch.full((LENGTH, 64), torch.nan)
    world.attention.run(1, world.sequences[0], y, plan)
    torch.testing.assert_close(y.double(), world.expected(0), rtol=0, atol=2e-5)


# Attention: tensors of a call.


@pytest.mark.parametrize("layer", [2, 2**70, pytest.param(-1)])
def test_layers_that_are_not_there(kernels: Kernels, layer: int) -> None:
    world = attention_world(kernels)
    plan = world.attention.plan(PagedRows([LENGTH], [LENGTH], world.tables))
    with pytest.raises(REFUSED):
        world.attention.run(layer, world.sequences[0], torch.empty(LENGTH, 64), plan)


@pytest.mark.parametrize("name", ["qkv", "y"])
def test_tensors_that_cannot_be_attended(kernels: Kernels, name: str) -> None:
    world = attention_world(kernels)
    plan = world.attention.plan(PagedRows([LENGTH], [LENGTH], world.tables))
    good = {"qkv": world.sequences[0], "y": torch.empty(LENGTH, 64)}
    for bad in _spoilt(good[name]):
        with pytest.raises((ValueError, RuntimeError)):
            world.attention.run(1, **{**good, name: bad}, metadata=plan)


def _spoilt(tensor: Tensor) -> list[Tensor]:
    """A tensor of [n, width] float32, spoilt in every way."""
    n, width = tensor.shape
    return [
        tensor[:-1],
        torch.cat((tensor, tensor)),
        tensor[:, :-1].contiguous(),
        tensor[:0],
        tensor[0],
        tensor[None],
        torch.tensor(1.0),
        tensor.bfloat16(),
        tensor.double(),
        tensor.to(torch.int32),
        tensor.to(torch.complex64),
        torch.empty(width, n).T,
        torch.empty(n, 2 * width)[:, ::2],
        torch.empty(1, width).expand(n, width),
        tensor.to("meta"),
        tensor.to_sparse(),
    ]


# Attention: arguments of the constructor.


def build_attention(kernels: Kernels, shape: Shape, **wrong: object) -> CpuAttention:
    """Builds an attention whose arguments fit, except those in `wrong`."""
    layout = KVLayout(2, shape.kv_heads, shape.dim, shape.block_size, torch.float32)
    if "layout" in wrong:
        layout = replace(layout, **wrong["layout"])  # type: ignore[arg-type]
    table = torch.zeros(LENGTH, shape.dim // 2)
    norms = [torch.ones(shape.heads + shape.kv_heads, shape.dim) for _ in range(2)] if shape.has_norm else []
    return CpuAttention(
        kernels,
        make_arena(layout, 3, page_bytes_for(layout.block_bytes, 0)),
        replace(shape.config, **wrong.get("config", {})),  # type: ignore[arg-type]
        wrong.get("cos", table),  # type: ignore[arg-type]
        wrong.get("sin", table),  # type: ignore[arg-type]
        wrong.get("norms", norms),  # type: ignore[arg-type]
    )


BUILDS: list[object] = [
    pytest.param({"config": {"num_heads": 300, "num_kv_heads": 1}}, id="group too large"),
    pytest.param({"config": {"head_dim": 7}}, id="odd heads"),
    pytest.param({"config": {"head_dim": 514}}, id="heads too large"),
    pytest.param({"config": {"num_kv_heads": 0}}, id="no KV head"),
    pytest.param({"layout": {"block_size": 24}}, id="blocks of no whole panels"),
    pytest.param({"layout": {"dtype": torch.float16}}, id="half precision"),
    pytest.param({"layout": {"block_size": 0}}, id="empty blocks"),
    pytest.param({"config": {"num_heads": 0}}, id="no head"),
    pytest.param({"config": {"num_heads": -4}}, id="negative number of heads"),
    pytest.param({"config": {"head_dim": 0}}, id="empty heads"),
    pytest.param({"config": {"head_dim": -2}}, id="heads of negative size"),
    pytest.param({"config": {"num_heads": 5}}, id="heads that do not share evenly"),
    pytest.param({"config": {"sliding_windows": (None, -1)}}, id="negative window"),
    pytest.param({"config": {"sliding_windows": (None, HUGE + 1)}}, id="window beyond int32"),
    pytest.param({"layout": {"num_kv_heads": 1}}, id="arena of fewer KV heads"),
    pytest.param({"layout": {"head_dim": 8}}, id="arena of smaller heads"),
    pytest.param({"layout": {"num_layers": 1}}, id="arena of fewer layers"),
    pytest.param({"cos": torch.zeros(LENGTH, 7)}, id="cosines too narrow"),
    pytest.param({"sin": torch.zeros(LENGTH, 9)}, id="sines too wide"),
    pytest.param({"sin": torch.zeros(LENGTH - 1, 8)}, id="fewer sines than cosines"),
    pytest.param({"cos": torch.zeros(LENGTH, 8).double()}, id="cosines in double"),
    pytest.param({"cos": torch.zeros(LENGTH, 8).bfloat16()}, id="cosines in bfloat16"),
    pytest.param({"cos": torch.zeros(8, LENGTH).T}, id="cosines by column"),
    pytest.param({"norms": [torch.ones(6, 16)]}, id="norms of one layer"),
    pytest.param({"norms": [torch.ones(5, 16)] * 2}, id="norms of too few heads"),
    pytest.param({"norms": [torch.ones(6, 15)] * 2}, id="norms too narrow"),
    pytest.param({"norms": [torch.ones(6, 16).bfloat16()] * 2}, id="norms in bfloat16"),
    pytest.param({"norms": [torch.ones(16, 6).T] * 2}, id="norms by column"),
]


@pytest.mark.parametrize("wrong", BUILDS)
def test_attention_that_cannot_be_built(kernels: Kernels, wrong: dict[str, object]) -> None:
    build_attention(kernels, Shape(has_norm=True))
    with pytest.raises((*REFUSED, ArithmeticError)):
        build_attention(kernels, Shape(has_norm=True), **wrong)


def test_metadata_of_another_backend(kernels: Kernels) -> None:
    world = attention_world(kernels)
    with pytest.raises(TypeError, match="AttentionMetadata"):
        world.attention.run(0, world.sequences[0], torch.empty(LENGTH, 64), AttentionMetadata())


# LoRA: segments and pages of a step.

USE = (("a", 1.0),)


def lora_world(kernels: Kernels, dtype: torch.dtype = torch.float32, in_: int = 40) -> LoRAWorld:
    return LoRAWorld(kernels, dtype, Site(in_, 48, ((0, 48),)), {"a": Adapter((20,))})


SEGMENTS: list[object] = [
    pytest.param([Segment(0, HUGE, USE)], id="beyond int32"),
    pytest.param([Segment(-HUGE - 1, 3, USE)], id="before int32"),
    pytest.param([Segment(0, 3, (("a", "much"),))], id="scale of text"),  # type: ignore[arg-type]
    pytest.param([Segment(0, 3, (("b", 1.0),))], id="unknown adapter"),
    pytest.param([Segment(-1, 3, USE)], id="before the batch"),
    pytest.param([Segment(3, 2, USE)], id="end before start"),
    pytest.param([Segment(3, 3, USE)], id="empty"),
    pytest.param([Segment(0, 3, USE), Segment(2, 4, USE)], id="overlapping"),
    pytest.param([Segment(2, 4, USE), Segment(0, 3, USE)], id="overlapping, in no order"),
    pytest.param([Segment(0, 3, USE), Segment(0, 3, USE)], id="the same twice"),
]


@pytest.mark.parametrize("segments", SEGMENTS)
def test_segments_that_cannot_be_planned(kernels: Kernels, segments: list[Segment]) -> None:
    world = lora_world(kernels)
    with pytest.raises(REFUSED):
        world.lora.plan(segments, world.page_ids)


def test_neighbouring_segments_do_not_overlap(kernels: Kernels) -> None:
    world = lora_world(kernels)
    assert len(world.plan([Segment(0, 3, USE), Segment(3, 4, USE)]).uses) == 2


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda ids, _: ids[:-1], id="too few"),
        pytest.param(lambda _ids, _: [], id="none"),
        pytest.param(lambda ids, _: [*ids[:-1], 2**70], id="beyond int64"),
        pytest.param(lambda ids, _: [*ids[:-1], "a"], id="text"),
        pytest.param(lambda ids, _: [*ids, ids[0]], id="too many"),
        pytest.param(lambda ids, num: [*ids[:-1], num], id="behind the arena"),
        pytest.param(lambda ids, _: [*ids[:-1], -1], id="before the arena"),
        pytest.param(lambda ids, _: [*ids[:-1], ids[-1] + 0.5], id="between two pages"),
    ],
)
def test_pages_where_no_adapter_can_be(kernels: Kernels, change: Callable[[list[int], int], list[int]]) -> None:
    world = lora_world(kernels)
    with pytest.raises(REFUSED):
        world.lora.plan([Segment(0, 3, USE)], {"a": change(world.page_ids["a"], len(world.pages))})


def test_an_adapter_of_another_dtype_is_no_image_for_the_pool(kernels: Kernels) -> None:
    world = lora_world(kernels, torch.bfloat16)
    table = world.images["a"].table
    with pytest.raises(REFUSED):
        DevicePool(world.pages, torch.float32).add(table, torch.zeros(table.num_pages, world.pages.shape[1]).byte())


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(lambda good: good[:-1], id="too few pages"),
        pytest.param(lambda good: good[:, :-1], id="too narrow"),
        pytest.param(lambda good: good.float(), id="float32"),
        pytest.param(lambda good: good.to("meta"), id="no memory"),
    ],
)
def test_images_that_are_none(kernels: Kernels, image: Callable[[Tensor], Tensor]) -> None:
    world = lora_world(kernels)
    good = world.images["a"]
    with pytest.raises(REFUSED):
        world.pool.add(good.table, image(torch.from_numpy(good.pages)))


@pytest.mark.parametrize(
    ("first", "page_ids"),
    [
        pytest.param(0, [10**6], id="behind the arena"),
        pytest.param(0, [-(10**6)], id="far before the arena"),
        pytest.param(0, [-1], id="before the arena"),
        pytest.param(-1, [0], id="before the image"),
        pytest.param(10**6, [0, 1], id="behind the image"),
        pytest.param(-1, [0, 1], id="one page of the image into two"),
    ],
)
def test_copies_that_have_no_place(kernels: Kernels, first: int, page_ids: list[int]) -> None:
    world = lora_world(kernels)
    with pytest.raises((*REFUSED, RuntimeError)):
        world.pool.copy("a", first, page_ids)


# LoRA: a plan and a call that do not belong together.


def linear_with_plan(world: LoRAWorld, plan_world: LoRAWorld, segments: list[Segment], num_tokens: int = 3) -> None:
    x, y = world.rows(num_tokens), world.before(num_tokens, Epilogue.STORE)
    world.kernels.linear(world.linear, x, y, Epilogue.STORE, plan_world.plan(segments))


def test_a_segment_ends_behind_the_batch(kernels: Kernels) -> None:
    world = lora_world(kernels)
    with pytest.raises(REFUSED):
        linear_with_plan(world, world, [Segment(2, 4, USE)])


def test_the_plan_is_for_another_dtype(kernels: Kernels) -> None:
    with pytest.raises(REFUSED):
        linear_with_plan(lora_world(kernels), lora_world(kernels, torch.bfloat16), [Segment(0, 3, USE)])


def test_the_adapter_has_another_number_of_inputs(kernels: Kernels) -> None:
    with pytest.raises(REFUSED):
        linear_with_plan(lora_world(kernels, in_=80), lora_world(kernels), [Segment(0, 3, USE)])


def test_the_adapter_is_wider_than_the_layer(kernels: Kernels) -> None:
    narrow = LoRAWorld(kernels, torch.float32, Site(40, 20, ((0, 20),)), {})
    with pytest.raises(REFUSED):
        linear_with_plan(narrow, lora_world(kernels), [Segment(0, 3, USE)])


@pytest.mark.parametrize("site", [NUM_SITES, HUGE - 1])
def test_the_site_is_beyond_the_plan(kernels: Kernels, site: int) -> None:
    world = lora_world(kernels)
    linear = kernels.pack_linear(torch.zeros(48, 40), None, site)
    with pytest.raises(REFUSED):
        kernels.linear(linear, world.rows(3), torch.empty(3, 48), Epilogue.STORE, world.plan([Segment(0, 3, USE)]))


@pytest.mark.parametrize("plan", [1, -1, 2**64, LoRAMetadata(), "a plan"], ids=["1", "-1", "2**64", "metadata", "text"])
def test_what_is_no_plan(kernels: Kernels, plan: object) -> None:
    world = lora_world(kernels)
    with pytest.raises(TypeError, match="^lora: "):
        kernels.linear(world.linear, world.rows(3), torch.empty(3, 48), Epilogue.STORE, plan)  # type: ignore[arg-type]


# Linear, norm, SiLU.


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("epilogue", [Epilogue.STORE, Epilogue.ADD, Epilogue.STORE_FLOAT])
def test_tensors_that_cannot_be_multiplied(kernels: Kernels, name: str, epilogue: Epilogue) -> None:
    linear = kernels.pack_linear(torch.zeros(48, 40), None, SITE)
    good = {"x": torch.zeros(5, 40), "y": torch.zeros(5, 48)}
    for bad in _spoilt(good[name]):
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            kernels.linear(linear, **{**good, name: bad}, epilogue=epilogue)


@pytest.mark.parametrize("out", [16, 48, 33])
def test_gates_that_are_no_whole_panels(kernels: Kernels, out: int) -> None:
    linear = kernels.pack_linear(torch.zeros(64, 8)[:out])
    with pytest.raises(ValueError, match="whole panels"):
        kernels.linear(linear, torch.zeros(3, 8), torch.zeros(3, out // 2), Epilogue.SILU_MUL)


@pytest.mark.parametrize("epilogue", [4, -1, 2**32, "ADD"])
def test_epilogues_that_are_none(kernels: Kernels, epilogue: Epilogue) -> None:
    linear = kernels.pack_linear(torch.zeros(32, 8))
    with pytest.raises(ValueError):
        kernels.linear(linear, torch.zeros(3, 8), torch.zeros(3, 32), epilogue)


@pytest.mark.parametrize("epilogue", [int(Epilogue.STORE_FLOAT), int(Epilogue.SILU_MUL)])
def test_an_epilogue_given_as_its_number_is_checked_as_itself(kernels: Kernels, epilogue: Epilogue) -> None:
    """In Python an int 3 is not Epilogue.STORE_FLOAT, but in C++ it is: it would write floats into a y of bfloat16."""
    linear = kernels.pack_linear(torch.zeros(32, 8, dtype=torch.bfloat16))
    x, y = torch.zeros(3, 8, dtype=torch.bfloat16), torch.zeros(3, 32, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="^y: "):
        kernels.linear(linear, x, y, epilogue)


@pytest.mark.parametrize("name", ["x", "y"])
def test_tensors_that_cannot_be_normed(kernels: Kernels, name: str) -> None:
    good = {"x": torch.zeros(5, 40), "y": torch.zeros(5, 40)}
    for bad in _spoilt(good[name]):
        with pytest.raises((ValueError, RuntimeError)):
            kernels.rms_norm(**{**good, name: bad}, weight=torch.ones(40), eps=1e-5)


@pytest.mark.parametrize("name", ["x", "y"])
def test_tensors_that_cannot_be_gated(kernels: Kernels, name: str) -> None:
    good = {"x": torch.zeros(5, 80), "y": torch.zeros(5, 40)}
    for bad in _spoilt(good[name]):
        with pytest.raises((ValueError, RuntimeError)):
            kernels.silu_mul(**{**good, name: bad})


OTHER_DTYPES = [torch.float16, torch.float64, torch.int32, torch.complex64, torch.bool]


@pytest.mark.parametrize("other", OTHER_DTYPES, ids=str)
def test_dtypes_that_no_kernel_has(kernels: Kernels, other: torch.dtype) -> None:
    """All tensors of a call have the same dtype, but no kernel has it."""
    x, weight = torch.zeros(3, 8, dtype=other), torch.ones(8, dtype=other)
    with pytest.raises((ValueError, KeyError)):
        kernels.rms_norm(x, weight, 1e-5, x)
    with pytest.raises((ValueError, KeyError)):
        kernels.silu_mul(torch.zeros(3, 16, dtype=other), x)
    with pytest.raises(ValueError, match="^weight: "):
        kernels.pack_linear(torch.zeros(16, 8, dtype=other))


@pytest.mark.parametrize("bias", [torch.zeros(15), torch.zeros(17), torch.zeros(16).double(), torch.zeros(32)[::2]])
def test_biases_that_do_not_fit(kernels: Kernels, bias: Tensor) -> None:
    with pytest.raises(ValueError, match="^bias: "):
        kernels.pack_linear(torch.zeros(16, 8), bias)


@pytest.mark.parametrize("ids", [[5], [-1], [2**62], [-(2**62)], [0, 4, 5]])
def test_rows_that_are_not_there(kernels: Kernels, ids: list[int]) -> None:
    linear = kernels.pack_linear(torch.zeros(16, 8)[:5])
    with pytest.raises(ValueError, match="^ids: "):
        kernels.unpack_rows(linear, torch.tensor(ids), torch.empty(len(ids), 8))


@pytest.mark.parametrize(
    "ids", [torch.zeros(3).int(), torch.zeros(3), torch.zeros(1, 3).long(), torch.zeros(6).long()[::2]]
)
def test_ids_of_another_kind(kernels: Kernels, ids: Tensor) -> None:
    linear = kernels.pack_linear(torch.zeros(16, 8))
    with pytest.raises(ValueError, match="^ids: "):
        kernels.unpack_rows(linear, ids, torch.empty(3, 8))


@pytest.mark.parametrize("logits", [torch.zeros(0), torch.zeros(8).double(), torch.zeros(2, 8), torch.zeros(16)[::2]])
def test_logits_that_nothing_can_be_drawn_from(kernels: Kernels, logits: Tensor) -> None:
    with pytest.raises(ValueError, match="logits"):
        kernels.draw(logits, 1.0, 0)


@pytest.mark.parametrize("logits", [torch.zeros(8), torch.zeros(2, 0), torch.zeros(2, 8).double(), torch.zeros(8, 2).T])
def test_logits_that_cannot_be_scanned(kernels: Kernels, logits: Tensor) -> None:
    with pytest.raises(ValueError, match="^logits: "):
        kernels.scan(logits)
