"""Layout: in which pieces a group of ranks of A or B stands, as the kernels of a backend load them. No torch.

Shards are taken in groups of 16, and the last ones in narrower groups, filled up with zeros to a multiple of 4.

A piece of A is some lines, a line [ranks of the group, inputs side by side]. A piece of B is a panel of outputs, which
is [units, outputs, ranks of a unit].

- VECTORS, of the CPU: a line is 64 bytes, as wide as a vector. A unit is 4 bytes: two bfloat16, one float. A line of A
  in a group of 16 ranks holds one unit of inputs of each rank; in a group of 8 two, in one of 4 four. So a kernel
  multiplies a line by units of x and has sums for each rank in its lanes. A panel is of 16 outputs, as the native
  kernels take any weight.
- TILES, of the GPU: a piece is what a program loads at a time, row by row: [ranks, 128 inputs] of A, [ranks, 128
  outputs] of B.
"""

from enum import StrEnum

ALIGNMENT = 64  # bytes
LINE_BYTES = 64  # of VECTORS
UNIT_BYTES = 4
PANEL = 16  # outputs
LINES = 8  # of a piece of A
GROUP = 16  # ranks
NARROW = (8, 4)  # the groups that ranks after the last whole group are taken in
TILE = 128  # inputs or outputs of a piece of TILES


class Layout(StrEnum):
    VECTORS = "vectors"
    TILES = "tiles"

    @property
    def panel(self) -> int:
        """Outputs of a piece of B, or of a vector."""
        return PANEL if self is Layout.VECTORS else TILE

    @property
    def lines(self) -> int:
        """Of a piece of A."""
        return LINES if self is Layout.VECTORS else 1

    def inputs_per_line(self, width: int, item_bytes: int) -> int:
        """Of each rank of a group of `width` ranks."""
        return LINE_BYTES // (width * item_bytes) if self is Layout.VECTORS else TILE

    def ranks_per_unit(self, item_bytes: int) -> int:
        """Of B."""
        return UNIT_BYTES // item_bytes if self is Layout.VECTORS else 1

    def largest_piece(self, item_bytes: int) -> int:
        """Bytes; a page has to hold one."""
        return GROUP * item_bytes * max(self.panel, self.lines * self.inputs_per_line(GROUP, item_bytes))

    def rank_groups(self, rank: int) -> list[int]:
        """The widths of a matrix's groups of ranks: together as many as it has, or up to three more."""
        widths, rest = [GROUP] * (rank // GROUP), rank % GROUP
        if self is Layout.TILES:
            return [*widths, -(-rest // 4) * 4] if rest else widths
        if rest > sum(NARROW):
            return [*widths, GROUP]
        if rest > NARROW[1]:
            widths.append(NARROW[0])
            rest -= NARROW[0]
        return [*widths, NARROW[1]] if rest > 0 else widths
