"""Layout: the pieces into which A and B are cut, as the kernels of a backend load them. No torch.

Ranks are taken in groups of 16, and the last ones in narrower groups, filled up with zeros to a multiple of 4.

A piece of A is a number of lines; a line is [ranks of the group, inputs side by side]. A piece of B is a panel of
outputs, which is [units, outputs, ranks of a unit].

- CPU: a line is 64 bytes, the widest SIMD vector. A unit is 4 bytes: two bfloat16 or one float. A line of A holds one
  unit of inputs of each rank in a group of 16 ranks, two in a group of 8, four in a group of 4. A kernel multiplies a
  line by units of x and keeps the sums of each rank in that rank's lanes. A panel has 16 outputs, as the native kernels
  store any weight.
- GPU: a piece is the load of one program, row by row: [ranks, 128 inputs] of A, [ranks, 128 outputs] of B.
"""

from enum import StrEnum

ALIGNMENT = 64  # bytes
LINE_BYTES = 64  # of Layout.CPU
UNIT_BYTES = 4
PANEL = 16  # outputs
LINES = 8  # in a piece of A
GROUP = 16  # ranks
NARROW = (8, 4)  # ranks in the groups after the last whole one
PIECE_WIDTH = 128  # inputs or outputs in a piece of Layout.GPU


class Layout(StrEnum):
    CPU = "cpu"
    GPU = "gpu"

    @property
    def panel(self) -> int:
        """Number of outputs in a piece of B, or of a vector."""
        return PANEL if self is Layout.CPU else PIECE_WIDTH

    @property
    def lines(self) -> int:
        """Number of lines in a piece of A."""
        return LINES if self is Layout.CPU else 1

    def inputs_per_line(self, width: int, item_bytes: int) -> int:
        """Returns the number of inputs of each rank in a line of A, for a group of `width` ranks."""
        return LINE_BYTES // (width * item_bytes) if self is Layout.CPU else PIECE_WIDTH

    def ranks_per_unit(self, item_bytes: int) -> int:
        """Returns the number of ranks in a unit of B."""
        return UNIT_BYTES // item_bytes if self is Layout.CPU else 1

    def largest_piece(self, item_bytes: int) -> int:
        """Returns the bytes of the largest piece. Every page has to hold at least one piece."""
        return GROUP * item_bytes * max(self.panel, self.lines * self.inputs_per_line(GROUP, item_bytes))

    def rank_groups(self, rank: int) -> list[int]:
        """Returns the widths of a matrix's groups of ranks. Together they are `rank`, or up to three more."""
        widths, rest = [GROUP] * (rank // GROUP), rank % GROUP
        if self is Layout.GPU:
            return [*widths, -(-rest // 4) * 4] if rest else widths
        if rest > sum(NARROW):
            return [*widths, GROUP]
        if rest > NARROW[1]:
            widths.append(NARROW[0])
            rest -= NARROW[0]
        return [*widths, NARROW[1]] if rest > 0 else widths
