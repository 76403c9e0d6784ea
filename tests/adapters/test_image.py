"""pack: every byte of an adapter stands where its table says, in chunks that a page can hold."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blora.adapters import AdapterImage, AdapterTooLarge, Checkpoint, TargetModule, pack
from blora.adapters.image import DTYPES, LARGEST_PIECE, Chunk
from blora.adapters.layout import ALIGNMENT, LINES, PANEL, PIECE_WIDTH, Layout
from blora.adapters.peft.checkpoint import Array, LoRAModule

Shape = tuple[int, int, int]  # rank, in_features, out_features
SHAPES: list[Shape] = [(1, 16, 8), (5, 40, 33), (64, 24, 17), (3, 1, 1)]


def random_floats(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Returns finite values of all exponents up to float16's largest, with subnormals and ties between bfloat16."""
    bits = generator.integers(0, 1 << 32, shape, dtype=np.uint32)
    bits[generator.random(shape) < 0.3] &= np.uint32(0xFFFF0000)
    bits[generator.random(shape) < 0.3] ^= np.uint32(0x00008000)
    values = bits.view(np.float32)
    return np.where(np.abs(values) <= 65504, values, np.float32(1.00390625))


def make_checkpoint(shapes: Sequence[Shape], seed: int = 0) -> Checkpoint:
    generator = np.random.default_rng(seed)
    modules = []
    for site, (rank, num_in, num_out) in enumerate(shapes):
        target = TargetModule(f"m{site}", num_in, num_out, site, 3 * site)
        a, b = random_floats(generator, (rank, num_in)), random_floats(generator, (num_out, rank))
        modules.append(LoRAModule(target, 0.5 + site, a, b))
    return Checkpoint("path", "digest", tuple(modules), ("a warning",))


def as_torch_stores(matrix: Array, dtype: str) -> bytes:
    return torch.from_numpy(matrix).to(getattr(torch, dtype)).view(torch.uint8).numpy().tobytes()


def packed_groups(image: AdapterImage, checkpoint: Checkpoint) -> Iterator[tuple[Array, tuple[Chunk, ...]]]:
    """Yields the expected content of each group, [pieces, elements], and the group's chunks."""
    layout, per_unit = image.table.layout, 1 if image.table.dtype == "float32" else 2
    for module, packed in zip(checkpoint.modules, image.table.modules, strict=True):
        first = 0
        for width, a, b in zip(layout.rank_groups(packed.rank), packed.a, packed.b, strict=True):
            ranks = slice(first, first + width)
            if layout is Layout.GPU:
                yield gpu_pieces_of(module.a[ranks], width), a
                yield gpu_pieces_of(module.b[:, ranks].T, width), b
            else:
                yield pieces_of_a(module.a[ranks], width, per_unit), a
                yield pieces_of_b(module.b[:, ranks], width, per_unit), b
            first += width


def gpu_pieces_of(matrix: Array, width: int) -> Array:
    """matrix: [ranks, n]. Returns [pieces, 128 of each rank]."""
    pieces = []
    for first in range(0, matrix.shape[1], PIECE_WIDTH):
        piece = np.zeros((width, PIECE_WIDTH), np.float32)
        part = matrix[:, first : first + PIECE_WIDTH]
        piece[: len(part), : part.shape[1]] = part
        pieces.append(piece.reshape(-1))
    return np.stack(pieces)


def pieces_of_a(a: Array, width: int, per_unit: int) -> Array:
    """Returns [pieces, 8 lines], made one element at a time."""
    units, num_in = 16 // width, a.shape[1]
    per_line = units * per_unit
    lines = np.zeros((-(-num_in // (per_line * LINES)) * LINES, 16 * per_unit), np.float32)
    for rank in range(len(a)):
        for at in range(num_in):
            unit, part = divmod(at % per_line, per_unit)
            lines[at // per_line, (rank * units + unit) * per_unit + part] = a[rank, at]
    return lines.reshape(-1, LINES * 16 * per_unit)


def pieces_of_b(b: Array, width: int, per_unit: int) -> Array:
    """Returns [panels, 16 outputs of all ranks], made one element at a time."""
    num_out, ranks = b.shape
    panels = np.zeros((-(-num_out // PANEL), width * PANEL), np.float32)
    for out in range(num_out):
        for rank in range(ranks):
            unit, part = divmod(rank, per_unit)
            panels[out // PANEL, (unit * PANEL + out % PANEL) * per_unit + part] = b[out, rank]
    return panels


def check_image(image: AdapterImage, checkpoint: Checkpoint, dtype: str) -> None:
    taken: list[tuple[int, int, int]] = []
    for matrix, chunks in packed_groups(image, checkpoint):
        piece_bytes = matrix.shape[1] * getattr(torch, dtype).itemsize
        check_pieces(chunks, len(matrix))
        content = b""
        for chunk in chunks:
            end = chunk.offset + chunk.num_pieces * piece_bytes
            taken.append((chunk.page, chunk.offset, end))
            content += image.pages[chunk.page, chunk.offset : end].tobytes()
        assert content == as_torch_stores(matrix, dtype)
    check_places(taken, image)


def check_pieces(chunks: Sequence[Chunk], num_pieces: int) -> None:
    """The chunks cover the pieces of a group once, in order."""
    ends = [chunk.first + chunk.num_pieces for chunk in chunks]
    assert [chunk.first for chunk in chunks] == [0, *ends[:-1]]
    assert ends[-1] == num_pieces
    assert min(chunk.num_pieces for chunk in chunks) > 0


def check_places(taken: list[tuple[int, int, int]], image: AdapterImage) -> None:
    assert image.pages.shape == (image.table.num_pages, image.table.page_bytes)
    assert image.pages.dtype == np.uint8
    assert {page for page, _, _ in taken} == set(range(image.table.num_pages))
    assert all(offset % ALIGNMENT == 0 for _, offset, _ in taken)
    assert all(end <= image.table.page_bytes for _, _, end in taken)
    for (page, _, end), (next_page, offset, _) in pairwise(sorted(taken)):
        assert page < next_page or end <= offset


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("spare", [0, 64, 7168, 1 << 20])
def test_every_matrix_reads_back_as_torch_converts_it(dtype: str, layout: Layout, spare: int) -> None:
    checkpoint = make_checkpoint(SHAPES)
    page_bytes = layout.largest_piece(getattr(torch, dtype).itemsize) + spare
    check_image(pack(checkpoint, dtype, page_bytes, layout), checkpoint, dtype)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=5),
    layout=st.sampled_from(Layout),
    dtype=st.sampled_from(DTYPES),
    slack=st.integers(0, 20),
    seed=st.integers(0, 1 << 32),
)
def test_any_shapes_fit_any_page_that_holds_a_piece(
    shapes: list[Shape], layout: Layout, dtype: str, slack: int, seed: int
) -> None:
    checkpoint = make_checkpoint(shapes, seed)
    page_bytes = layout.largest_piece(4) + slack * ALIGNMENT
    check_image(pack(checkpoint, dtype, page_bytes, layout), checkpoint, dtype)


def test_ties_go_to_the_even_bfloat16() -> None:
    bits = np.array([[0x3F808000, 0x3F818000, 0x3F808001, 0x3F817FFF, 0xBF808000, 0xBF818000]], np.uint32)
    expected = [0x3F80, 0x3F82, 0x3F81, 0x3F81, 0xBF80, 0xBF82]
    target = TargetModule("m", 6, 1, 0, 0)
    module = LoRAModule(target, 1.0, bits.view(np.float32), np.ones((1, 1), np.float32))
    image = pack(Checkpoint("", "", (module,), ()), "bfloat16", LARGEST_PIECE)
    assert image.pages[0, :12].view(np.uint16).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_weight_that_is_read_stays_finite(dtype: str) -> None:
    module = LoRAModule(
        TargetModule("m", 1, 1, 0, 0), 1.0, np.full((1, 1), 65504.0, "f4"), np.full((1, 1), -65504.0, "f4")
    )
    image = pack(Checkpoint("", "", (module,), ()), dtype, LARGEST_PIECE)
    content = torch.from_numpy(image.pages).view(getattr(torch, dtype))
    assert torch.isfinite(content).all()
    assert content.abs().max() >= 65504


def test_the_table_says_what_the_checkpoint_says() -> None:
    checkpoint = make_checkpoint(SHAPES)
    table = pack(checkpoint, "float32", 4096).table
    assert (table.digest, table.dtype, table.page_bytes, table.warnings) == ("digest", "float32", 4096, ("a warning",))
    assert table.num_bytes == table.num_pages * 4096
    for module, packed in zip(checkpoint.modules, table.modules, strict=True):
        target = module.target
        assert (packed.name, packed.site, packed.column) == (target.name, target.site, target.offset)
        assert (packed.rank, packed.in_features, packed.out_features) == (
            module.rank,
            target.in_features,
            target.out_features,
        )
        assert packed.scaling == module.scaling


def test_small_pages_split_matrices() -> None:
    module = pack(make_checkpoint([(8, 128, 48)]), "float32", 1024).table.modules[0]
    assert [[chunk.num_pieces for chunk in group] for group in module.a] == [[2, 2, 2, 2]]
    assert [[chunk.num_pieces for chunk in group] for group in module.b] == [[2, 1]]


@pytest.mark.parametrize("rank", range(1, 70))
def test_groups_hold_all_ranks_and_fewer_than_four_more(rank: int) -> None:
    for layout in Layout:
        widths = layout.rank_groups(rank)
        assert rank <= sum(widths) < rank + 4
        assert sorted(widths, reverse=True) == widths and set(widths) <= {16, 12, 8, 4}
        assert [width for width in widths if width < 16] == widths[rank // 16 :] or rank % 16 > 12
    assert 12 not in Layout.CPU.rank_groups(rank)
    assert len(Layout.GPU.rank_groups(rank)) == -(-rank // 16)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_cost_their_bytes_and_no_more(dtype: str, layout: Layout) -> None:
    shapes = [(rank, 128, 256) for rank in (1, 3, 8, 12, 20, 64)]
    image = pack(make_checkpoint(shapes), dtype, 1 << 20, layout)
    used = np.flatnonzero(image.pages[0])[-1] + 1
    item_bytes: int = getattr(torch, dtype).itemsize
    assert used <= sum(-(-rank // 4) * 4 * (num_in + num_out) for rank, num_in, num_out in shapes) * item_bytes


def test_a_piece_larger_than_a_page_is_an_error() -> None:
    with pytest.raises(AdapterTooLarge, match="a piece of 512 bytes does not fit into a page of 128"):
        pack(make_checkpoint([(4, 40, 8)]), "float32", 128)


def test_an_unknown_type_is_an_error() -> None:
    with pytest.raises(ValueError, match="dtype 'int8'"):
        pack(make_checkpoint([(4, 4, 4)]), "int8", 128)
