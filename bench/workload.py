"""Workload: rows of random prompts and the adapter of each, drawn from a seed. Imports no torch and no engine."""

import random
from dataclasses import dataclass

# How requests are spread over adapters, in Punica's words (arXiv 2310.18547, section 7).
POPULARITIES = ("uniform", "distinct", "skewed", "identical")
SKEW = 1.5  # Punica's Zipf-1.5: an adapter gets 1.5 times the requests of the next one


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The parameters of a workload. rows: number of rows that run at once. adapters: number to choose from; 0 is the
    base model only. base_share: share of rows without an adapter."""

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
            raise ValueError("rows and prompt_len have to be at least 1, and adapters at least 0")
        if self.output_len < 2:
            raise ValueError(f"output_len: {self.output_len} is less than 2: there would be no decode step to measure")
        if self.adapters and self.popularity == "distinct" and self.adapters < self._num_adapted:
            raise ValueError(f"distinct: {self._num_adapted} rows need as many adapters, not {self.adapters}")

    @property
    def _num_adapted(self) -> int:
        """The number of rows with an adapter."""
        return self.rows - round(self.rows * self.base_share) if self.adapters else 0

    def assign(self, turn: int = 0) -> list[int | None]:
        """Returns the adapter of each row; None is the base model. With more adapters than rows, each turn goes on with
        adapters that were not used yet."""
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
            case _:  # adapters in turn; for "distinct" there are enough of them
                return [(turn * count + row) % self.adapters for row in range(count)]

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Returns prompts of random token ids, so that no two rows share a prefix."""
        draw = random.Random(f"prompts {self.seed}")
        return [draw.choices(range(vocab_size), k=self.prompt_len) for _ in range(self.rows)]


def skewed(count: int, adapters: int) -> list[int]:
    """Returns the adapters of `count` rows, popular ones first, as near to their shares as whole rows allow."""
    if not count:
        return []
    weights = [SKEW**-adapter for adapter in range(adapters)]
    shares = [count * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in shares]
    largest_rests = sorted(range(adapters), key=lambda adapter: (counts[adapter] - shares[adapter], adapter))
    for adapter in largest_rests[: count - sum(counts)]:
        counts[adapter] += 1
    return [adapter for adapter in range(adapters) for _ in range(counts[adapter])]
