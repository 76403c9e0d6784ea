"""Workload: rows of random prompts and the adapter of each, decided by a seed. Imports no torch and no engine."""

import random
from dataclasses import dataclass

# Punica's words (arXiv 2310.18547, section 7) for how requests are spread over adapters.
POPULARITIES = ("uniform", "distinct", "skewed", "identical")
SKEW = 1.5  # Punica's Zipf-1.5: an adapter is asked 1.5 times as often as the next one


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """rows: that run at once. adapters: to choose from; 0 is the base model only. base_share: of rows without one."""

    rows: int
    prompt_len: int
    output_len: int
    adapters: int = 0
    popularity: str = "uniform"
    base_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.popularity not in POPULARITIES:
            raise ValueError(f"popularity: {self.popularity!r} is not one of {', '.join(POPULARITIES)}")
        if not 0 <= self.base_share <= 1:
            raise ValueError(f"base_share: {self.base_share} is not between 0 and 1")
        if self.rows < 1 or self.prompt_len < 1 or self.adapters < 0:
            raise ValueError("there has to be a row, and a token in its prompt")
        if self.output_len < 2:
            raise ValueError(f"output_len: {self.output_len} is less than 2, which leaves no decode step to measure")
        if self.adapters and self.popularity == "distinct" and self.adapters < self._num_adapted:
            raise ValueError(f"distinct: {self._num_adapted} rows need as many adapters, not {self.adapters}")

    @property
    def _num_adapted(self) -> int:
        """Rows that have an adapter."""
        return self.rows - round(self.rows * self.base_share) if self.adapters else 0

    def assign(self, turn: int = 0) -> list[int | None]:
        """The adapter of each row; None is the base model. Where there are more adapters than rows, turns go on to
        those that were not used yet."""
        adapted = self._spread(turn)
        rows = [*adapted, *[None] * (self.rows - len(adapted))]
        random.Random(f"rows {self.seed} {turn}").shuffle(rows)
        return rows

    def _spread(self, turn: int) -> list[int]:
        count = self._num_adapted
        match self.popularity:
            case "identical":
                return [0] * count
            case "skewed":
                return skewed(count, self.adapters)
            case _:  # each in turn; "distinct" has enough of them
                return [(turn * count + row) % self.adapters for row in range(count)]

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Random token ids, so that no two rows share a prefix."""
        draw = random.Random(f"prompts {self.seed}")
        return [draw.choices(range(vocab_size), k=self.prompt_len) for _ in range(self.rows)]


def skewed(count: int, adapters: int) -> list[int]:
    """The adapters of `count` rows, the popular first, as near to their shares as whole rows allow."""
    if not count:
        return []
    weights = [SKEW**-adapter for adapter in range(adapters)]
    shares = [count * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in shares]
    largest_rests = sorted(range(adapters), key=lambda adapter: (counts[adapter] - shares[adapter], adapter))
    for adapter in largest_rests[: count - sum(counts)]:
        counts[adapter] += 1
    return [adapter for adapter in range(adapters) for _ in range(counts[adapter])]
