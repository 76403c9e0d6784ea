"""Sample: a prompt and how long its answer may be. Dataset: what draws samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    prompt: Sequence[int] | str  # token ids, or a text
    max_tokens: int
    adapter: str | None = None  # where the data itself says which one; empty: the base model
    seconds: float | None = None  # when it arrives, in data with times
    sampling: Mapping[str, Any] = field(default_factory=dict)  # further fields of SamplingParams
    expected: str | None = None  # the right answer, where there is one
    check: str = ""  # the task of the demo that compares with it; empty: the same text


class Dataset(Protocol):
    def draw(self, count: int, seed: int) -> list[Sample]:
        """Returns so many samples, the same for the same seed. Raises ValueError where there are fewer."""
        ...
