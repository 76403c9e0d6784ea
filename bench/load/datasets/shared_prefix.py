"""SharedPrefix: groups of prompts that begin alike, as `vllm bench serve --dataset-name prefix_repetition` has them."""

import random
from dataclasses import dataclass

from .sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """num_prefixes groups; a prompt is its group's prefix_len tokens and suffix_len tokens of its own. The groups take
    as many prompts each, and come mixed."""

    vocab_size: int
    prefix_len: int
    suffix_len: int
    num_prefixes: int
    output_len: int

    def draw(self, count: int, seed: int) -> list[Sample]:
        if self.num_prefixes > count:
            raise ValueError(f"{count} prompts cannot have {self.num_prefixes} prefixes: each needs one")
        source = random.Random(f"shared prefixes {seed}")
        prefixes = [self._tokens(source, self.prefix_len) for _ in range(self.num_prefixes)]
        samples = [
            Sample(
                prompt=prefixes[number % self.num_prefixes] + self._tokens(source, self.suffix_len),
                max_tokens=self.output_len,
            )
            for number in range(count)
        ]
        source.shuffle(samples)
        return samples

    def _tokens(self, source: random.Random, count: int) -> list[int]:
        return source.choices(range(self.vocab_size), k=count)
