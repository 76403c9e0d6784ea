"""The two kernels of TritonLoRA: `shrink` computes h = A x, `expand` adds B h to y.

Beside x and y, the kernels read tables of integers, which step_table.py (uses, strips), adapter_table.py (modules,
lines) and sites.py (panels) write. A strip is some rows of one segment. Weights are stored in pieces of [ranks of a
group, 128], row by row (Layout.GPU). A piece is found by the 64-byte line of the arena at which it begins, so neither
an adapter's pages nor a matrix need be contiguous.

All sums are float32. A row of h is summed in splits of the inputs at fixed places, one split after another. One program
may compute all splits, or each split may have a program that writes its sum to a plane: the bits are the same. No sum
uses atomics. So the result of a row depends on the row and on the kernel's BLOCK_ROWS, and on no other row.

Each kernel loops over the work that the step's header describes on the device. The grid may be the exact number of
pieces of work, or any fixed number of programs, which a CUDA graph needs.

BLOCK_ROWS is 1 for strips of a single row, which are multiplied without tensor cores and without rows of padding;
otherwise it is at least 16. The pointers are: x [tokens, num_inputs], y [tokens, outputs of the site], h [planes, rows
of h, modules of the site, groups, 16] float32, weights: the arena in elements of x's dtype, floats: the arena in
float32.
"""

import triton
import triton.language as tl

RANKS = tl.constexpr(16)  # ranks of a group
PIECE_WIDTH = tl.constexpr(128)  # inputs or outputs of a piece
LINE_BYTES = tl.constexpr(64)
STAGES = tl.constexpr(5)  # of the loop over the pieces of A, which loads the next ones meanwhile
USE_FIELDS = tl.constexpr(5)  # int64: address of the adapter's table, bits of the scale, row of h, first token, tokens
STRIP_FIELDS = tl.constexpr(4)  # int64: first token, tokens, first use, uses
MODULE_FIELDS = tl.constexpr(8)  # int32: rank, A, B, bits of the scaling, has gain, gain, has shift, shift
PANEL_FIELDS = tl.constexpr(5)  # int32: module, panel of it, panels of the module, first column in the site, columns


def is_interpreted() -> bool:
    """Whether the kernels below run on the CPU, an operation at a time (TRITON_INTERPRET)."""
    return not isinstance(shrink, triton.JITFunction)


@triton.jit
def find_piece(table, entry, arena, item_bytes: tl.constexpr):
    """The address of a piece, from the entry of the adapter's table that holds its line."""
    return arena + tl.load(table + entry).to(tl.uint32, bitcast=True).to(tl.int64) * (LINE_BYTES // item_bytes)


@triton.jit
def group_width(rank, group):
    """The ranks of a group as it is stored, with its padding."""
    return tl.minimum((rank - group * RANKS + 3) // 4 * 4, RANKS)


@triton.jit
def sum_split(
    x_rows, is_row, num_inputs, table, lines, weights, width, first, last, item_bytes: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """The sum over pieces [first, last) of a group of A: [BLOCK_ROWS, 16] float32. x_rows: [BLOCK_ROWS] pointers."""
    ranks = tl.arange(0, RANKS)
    inputs = tl.arange(0, PIECE_WIDTH)
    if BLOCK_ROWS == 1:
        products = tl.zeros([RANKS, PIECE_WIDTH], tl.float32)
        for piece in tl.range(first, last, num_stages=STAGES):
            a_at = (
                find_piece(table, lines + piece, weights, item_bytes) + ranks[:, None] * PIECE_WIDTH + inputs[None, :]
            )
            a = tl.load(a_at, mask=ranks[:, None] < width, other=0.0)
            at = piece * PIECE_WIDTH + inputs
            x = tl.load(x_rows[:, None] + at[None, :], mask=at[None, :] < num_inputs, other=0.0)  # the one row
            products += a.to(tl.float32) * x.to(tl.float32)
        return tl.sum(products, axis=1)[None, :]
    total = tl.zeros([BLOCK_ROWS, RANKS], tl.float32)
    for piece in tl.range(first, last, num_stages=STAGES):
        a_at = find_piece(table, lines + piece, weights, item_bytes) + ranks[:, None] * PIECE_WIDTH + inputs[None, :]
        a = tl.load(a_at, mask=ranks[:, None] < width, other=0.0)
        at = piece * PIECE_WIDTH + inputs
        x = tl.load(x_rows[:, None] + at[None, :], mask=is_row[:, None] & (at[None, :] < num_inputs), other=0.0)
        total = tl.dot(x, tl.trans(a), total, input_precision="ieee")
    return total


# Numbers and the alignment of tables differ from site to site and from step to step: they must not cause a compilation.
@triton.jit(
    do_not_specialize=["num_inputs", "first_module", "num_modules", "num_splits", "split_pieces", "num_planes"],
    do_not_specialize_on_alignment=["header", "uses"],
)
def shrink(
    x, h, weights, header, uses, x_stride, num_inputs, first_module, num_modules, num_splits, split_pieces, num_planes,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """Computes h[plane] = A x for every (use, module, group of ranks).

    header: [uses, strips, rows of h, groups] int64.
    num_splits: splits of the inputs; each but the last has split_pieces pieces.
    num_planes: num_splits; or 1, for the sum of all splits.
    """
    item_bytes: tl.constexpr = weights.dtype.element_ty.primitive_bitwidth // 8
    num_pieces = tl.cdiv(num_inputs, PIECE_WIDTH)
    num_rows = tl.load(header + 2)
    num_groups = tl.load(header + 3)
    for work in range(tl.program_id(0), tl.load(header) * num_modules * num_planes, tl.num_programs(0)):
        plane = work % num_planes
        module = work // num_planes % num_modules
        use = uses + work // num_planes // num_modules * USE_FIELDS
        table = tl.load(use).to(tl.pointer_type(tl.int32))
        rank = tl.load(table + (first_module + module) * MODULE_FIELDS)
        lines = tl.load(table + (first_module + module) * MODULE_FIELDS + 1)
        rows = tl.arange(0, BLOCK_ROWS)
        is_row = rows < tl.load(use + 4)
        x_rows = x + (tl.load(use + 3) + rows) * x_stride
        h_row = plane * num_rows + tl.load(use + 2) + rows
        for group in range(tl.cdiv(rank, RANKS)):
            total = tl.zeros([BLOCK_ROWS, RANKS], tl.float32)
            for split in range(plane, tl.where(num_planes == 1, num_splits, plane + 1)):
                first = split * split_pieces
                total += sum_split(
                    x_rows, is_row, num_inputs, table, lines + group * num_pieces, weights, group_width(rank, group),
                    first, tl.minimum(first + split_pieces, num_pieces), item_bytes, BLOCK_ROWS,
                )  # fmt: skip
            h_at = ((h_row * num_modules + module) * num_groups + group) * RANKS
            tl.store(h + h_at[:, None] + tl.arange(0, RANKS)[None, :], total, mask=is_row[:, None])


@triton.jit
def load_h(h_at, is_row, plane_stride, num_planes, BLOCK_ROWS: tl.constexpr):
    """The sum of the planes, one after another: [BLOCK_ROWS, 16] float32. h_at: [BLOCK_ROWS] pointers."""
    ranks = tl.arange(0, RANKS)
    total = tl.zeros([BLOCK_ROWS, RANKS], tl.float32)
    for plane in range(num_planes):
        at = h_at[:, None] + plane * plane_stride + ranks[None, :]
        total += tl.load(at, mask=is_row[:, None], other=0.0)
    return total


@triton.jit
def add_product(total, h, b):
    """Returns total + h b. h: [rows, 16], b: [16, outputs], in the weights' dtype; total: [rows, outputs] float32."""
    if total.shape[0] == 1:
        return total + tl.sum(tl.trans(h.to(tl.float32)) * b.to(tl.float32), axis=0)[None, :]
    return tl.dot(h, b, total, input_precision="ieee")


@triton.jit(
    do_not_specialize=["num_panels", "first_module", "num_modules", "num_planes"],
    do_not_specialize_on_alignment=["header", "uses", "strips", "panels"],
)
def expand(
    y, h, weights, floats, header, uses, strips, panels, y_stride, num_panels, first_module, num_modules, num_planes,
    BLOCK_ROWS: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """Computes y = gain * (y + scale * scaling * B h) + scale * shift, for each use of a strip in order.

    y is rounded once. A program computes 128 outputs of one module for the rows of one strip; no other program writes
    them.
    ALIGNMENT: every module's first column and number of outputs are multiples of it.
    """
    item_bytes: tl.constexpr = weights.dtype.element_ty.primitive_bitwidth // 8
    ranks = tl.arange(0, RANKS)
    outputs = tl.arange(0, PIECE_WIDTH)
    rows = tl.arange(0, BLOCK_ROWS)
    num_groups = tl.load(header + 3)
    h_stride = num_modules * num_groups * RANKS
    plane_stride = tl.load(header + 2) * h_stride
    for work in range(tl.program_id(0), tl.load(header + 1) * num_panels, tl.num_programs(0)):
        geometry = panels + work % num_panels * PANEL_FIELDS
        module = tl.load(geometry)
        panel = tl.load(geometry + 1)
        module_panels = tl.load(geometry + 2)
        column = tl.multiple_of(tl.load(geometry + 3), ALIGNMENT)
        is_column = outputs < tl.multiple_of(tl.load(geometry + 4), ALIGNMENT)
        strip = strips + work // num_panels * STRIP_FIELDS
        is_row = rows < tl.load(strip + 1)
        y_at = y + (tl.load(strip) + rows)[:, None] * y_stride + (column + outputs)[None, :]
        mask = is_row[:, None] & is_column[None, :]
        total = tl.load(y_at, mask=mask, other=0.0).to(tl.float32)
        is_changed = 0
        first_use = tl.load(strip + 2)
        for i in range(tl.load(strip + 3)):
            use = uses + (first_use + i) * USE_FIELDS
            table = tl.load(use).to(tl.pointer_type(tl.int32))
            scale = tl.load(use + 1).to(tl.int32).to(tl.float32, bitcast=True)
            entry = table + (first_module + module) * MODULE_FIELDS
            rank = tl.load(entry)
            lines = tl.load(entry + 2) + panel
            factor = scale * tl.load(entry + 3).to(tl.float32, bitcast=True)
            has_gain = tl.load(entry + 4)
            has_shift = tl.load(entry + 6)
            is_changed |= rank | has_gain | has_shift
            h_at = h + (tl.load(use + 2) + rows) * h_stride + module * num_groups * RANKS
            for group in range(tl.cdiv(rank, RANKS)):
                change = load_h(h_at + group * RANKS, is_row, plane_stride, num_planes, BLOCK_ROWS) * factor
                piece = find_piece(table, lines + group * module_panels, weights, item_bytes)
                b_at = piece + ranks[:, None] * PIECE_WIDTH + outputs[None, :]
                b = tl.load(b_at, mask=ranks[:, None] < group_width(rank, group), other=0.0)
                total = add_product(total, change.to(b.dtype), b)
            if has_gain != 0:
                gain = find_piece(table, tl.load(entry + 5) + panel, floats, 4)
                total *= tl.load(gain + outputs)[None, :]
            if has_shift != 0:
                shift = find_piece(table, tl.load(entry + 7) + panel, floats, 4)
                total += scale * tl.load(shift + outputs)[None, :]
        if is_changed != 0:
            tl.store(y_at, total.to(y.dtype.element_ty), mask=mask)
