"""Work: the rows that run together and their prompts, the same for every peer."""

import random
from dataclasses import dataclass
from typing import Literal

from .protocol import Job, Tokens

Mode = Literal["base", "adapters"]
MODES: tuple[Mode, ...] = ("base", "adapters")
FIRST_TOKEN = 64  # prompts use ids from here on, because special tokens come first in a vocabulary


@dataclass(frozen=True)
class Case:
    """One batch. adapters: number of adapters over which the rows are spread evenly; 0 is the base model."""

    rows: int
    adapters: int

    @property
    def key(self) -> str:
        return f"{self.rows}x{self.adapters}"

    @property
    def mode(self) -> Mode:
        return "adapters" if self.adapters else "base"

    def __str__(self) -> str:
        text = _counted(self.rows, "row")
        return f"{text}, {_counted(self.adapters, 'adapter')}" if self.adapters else text


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True)
class Work:
    """All the cases of a run. Lengths are in tokens."""

    rows: tuple[int, ...] = (1, 16, 64)
    adapters: int = 8
    prompt_len: int = 64
    output_len: int = 64
    vocab_size: int = 49152
    seed: int = 0

    @property
    def max_rows(self) -> int:
        """The most rows at once, in the cases and in the batches of the isolation check."""
        return max(*self.rows, 2 * self.adapters)

    def cases(self) -> list[Case]:
        base = [Case(rows, 0) for rows in self.rows]
        return base + [Case(rows, min(rows, self.adapters)) for rows in self.rows if self.adapters]

    def job(self, case: Case, turn: int, max_tokens: int) -> Job:
        """Returns the job of a case in one turn. No two jobs share a prompt, so that a prefix cache has no hits."""
        prompts = self.prompts(f"{case.key} {turn} {max_tokens}", case.rows)
        return Job(prompts, [row % case.adapters if case.adapters else None for row in range(case.rows)], max_tokens)

    def prompts(self, name: str, rows: int) -> Tokens:
        """Returns prompts of random tokens; the same name gives the same prompts."""
        choice = random.Random(f"{self.seed} {name}")
        return [[choice.randrange(FIRST_TOKEN, self.vocab_size) for _ in range(self.prompt_len)] for _ in range(rows)]
