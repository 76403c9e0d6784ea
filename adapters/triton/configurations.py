"""The configurations of the kernels: TritonLoRA launches these and no others, and `blora bench triton` compiles them
to report on them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .sites import WIDEST_ALIGNMENT
from .step_table import LONG_ROWS, MEDIUM_ROWS

BLOCK_ROWS = (1, MEDIUM_ROWS, LONG_ROWS)
ALIGNMENTS = (1, WIDEST_ALIGNMENT)


@dataclass(frozen=True, slots=True)
class Configuration:
    kernel: str  # its name in kernels.py
    constants: Mapping[str, int]
    options: Mapping[str, int]

    def __str__(self) -> str:
        return " ".join([self.kernel, *(f"{name}={value}" for name, value in self.constants.items())])

    @property
    def arguments(self) -> dict[str, Any]:
        """The last arguments of a launch, after the kernel's own."""
        return {**self.constants, **self.options}


def shrink_configuration(block_rows: int) -> Configuration:
    return Configuration("shrink", {"BLOCK_ROWS": block_rows}, _options(block_rows, 96, 192))


def expand_configuration(block_rows: int, alignment: int) -> Configuration:
    constants = {"BLOCK_ROWS": block_rows, "ALIGNMENT": alignment}
    return Configuration("expand", constants, _options(block_rows, *((64, 128) if alignment > 1 else (128, 255))))


def _options(block_rows: int, registers: int, long_registers: int) -> Mapping[str, int]:
    """The warps, and the limit of registers. Without a limit, ptxas spills registers to fit one more program on a
    multiprocessor. With only four warps, 64 rows of 128 outputs at any column would need more registers than a thread
    has."""
    is_long = block_rows >= LONG_ROWS
    return {"num_warps": 8 if is_long else 4, "maxnreg": long_registers if is_long else registers}


def configurations() -> Iterator[Configuration]:
    for block_rows in BLOCK_ROWS:
        yield shrink_configuration(block_rows)
        for alignment in ALIGNMENTS:
            yield expand_configuration(block_rows, alignment)
