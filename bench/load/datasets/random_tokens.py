"""RandomTokens: prompts of random token ids, as `vllm bench serve --dataset-name random` has them."""

import random
from dataclasses import dataclass

from .sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomTokens:
    """Lengths are even between len * (1 - range_ratio) and len * (1 + range_ratio). All prompts begin with the same
    prefix_len tokens. Token ids below `first_id`, such as special ones, are left out."""

    vocab_size: int
    input_len: int
    output_len: int
    range_ratio: float = 0.0
    prefix_len: int = 0
    first_id: int = 0

    def draw(self, count: int, seed: int) -> list[Sample]:
        if not 0 <= self.range_ratio < 1:
            raise ValueError(f"the range ratio is {self.range_ratio}; it has to be from 0 to below 1")
        if not 0 <= self.first_id < self.vocab_size:
            raise ValueError(f"a vocabulary of {self.vocab_size} tokens has none from {self.first_id} on")
        source = random.Random(f"random tokens {seed}")
        prefix = self._tokens(source, self.prefix_len)
        return [
            Sample(prompt=prefix + self._tokens(source, self._len(source, self.input_len)), max_tokens=most)
            for most in (self._len(source, self.output_len) for _ in range(count))
        ]

    def _len(self, source: random.Random, length: int) -> int:
        low, high = int(length * (1 - self.range_ratio)), int(length * (1 + self.range_ratio))
        return max(source.randint(low, high), 1)

    def _tokens(self, source: random.Random, count: int) -> list[int]:
        return source.choices(range(self.first_id, self.vocab_size), k=count)
