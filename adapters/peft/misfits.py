"""Misfits: the tensors of a checkpoint that do not fit the model, told in a few lines.

A file of another model or of another trainer has hundreds of misfits of one kind. They become one line with the first
names, so that the names of the file stand beside those expected. Knows no tensor's content.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

FEW = 3  # misfits of a kind that have a line each
SHOWN = 3  # misfits in the line of many
MAX_SHOWN_LENGTH = 120  # characters of a name


@dataclass(frozen=True, slots=True)
class Misshapen:
    part: str  # module and part
    shape: tuple[int, ...]
    wanted: tuple[int, ...]

    @property
    def has_other_rank(self) -> bool:
        """Whether the shape is that of another rank on the same module."""
        kept = slice(1, None) if "lora_A" in self.part else slice(0, 1)
        return len(self.shape) == len(self.wanted) and self.shape[kept] == self.wanted[kept]

    def __str__(self) -> str:
        return f"{self.part} has shape {list(self.shape)}; model and rank ask for {list(self.wanted)}"


@dataclass
class Misfits:
    misplaced: list[str] = field(default_factory=list)  # names in the file that land on no module
    doubles: list[str] = field(default_factory=list)  # names in the file that mean the same tensor as another one
    missing: list[str] = field(default_factory=list)  # expected names
    misshapen: list[Misshapen] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)  # tensors with values that cannot be used, as a problem each
    untargeted: list[str] = field(default_factory=list)  # modules that the configuration does not train

    def __bool__(self) -> bool:
        return any((self.misplaced, self.doubles, self.missing, self.misshapen, self.unusable, self.untargeted))

    def lines(self) -> Iterator[str]:
        yield from lines_of(
            self.misplaced,
            "tensor {} lands on no module of the model",
            "tensors of the file land on no module of the model",
        )
        yield from lines_of(
            self.doubles, "tensor {} means the same as another one", "tensors of the file mean the same as other ones"
        )
        yield from lines_of(self.missing, "tensor {} is missing", "expected tensors are missing")
        yield from lines_of(list(map(str, self.misshapen)), "{}", "tensors have other shapes")
        yield from lines_of(self.unusable, "{}", "tensors hold values that cannot be used")
        yield from lines_of(
            self.untargeted,
            "{} has tensors, but the configuration does not target it",
            "modules have tensors, but the configuration does not target them",
        )


def lines_of(misfits: Sequence[str], one: str, many: str) -> Iterator[str]:
    """Yields a line for each of few misfits, and one line for many. one: with a place for a misfit."""
    if len(misfits) <= FEW:
        yield from (one.format(shown(misfit)) for misfit in misfits)
    else:
        yield f"{len(misfits)} {many}: {', '.join(map(shown, sorted(misfits)[:SHOWN]))} and so on"


def shown(text: str) -> str:
    """Returns a stranger's text for a message: one line of bounded length."""
    clear = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[: 2 * MAX_SHOWN_LENGTH])
    half = MAX_SHOWN_LENGTH // 2
    return clear if len(clear) <= MAX_SHOWN_LENGTH else f"{clear[:half]}...{clear[-half:]}"
