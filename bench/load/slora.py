"""S-LoRA's traffic, with the parameter names of its generator (arXiv 2311.03285): gamma arrivals, adapters by a power,
lengths even between two bounds."""

import random
from dataclasses import dataclass

from .arrivals import check_rates
from .datasets import Sample
from .popularity import assign


@dataclass(frozen=True, slots=True, kw_only=True)
class SLoRA:
    """req_rate: requests per second for `duration` seconds. cv: variation of the gaps; the burstiness is 1 / cv^2.
    alpha: of the power popularity, 1 is uniform, less favours the first adapters."""

    num_adapters: int
    alpha: float
    req_rate: float
    cv: float
    duration: float
    input_range: tuple[int, int] = (8, 512)  # tokens
    output_range: tuple[int, int] = (8, 512)

    def draw(self, names: list[str], vocab_size: int, seed: int) -> list[Sample]:
        """Returns floor(req_rate * duration) samples with times and adapters. names: of the adapters, num_adapters."""
        check_rates(self.req_rate, self.cv, None)
        if len(names) < self.num_adapters:
            raise ValueError(f"{self.num_adapters} adapters are wanted and {len(names)} are named")
        count = int(self.req_rate * self.duration)
        source = random.Random(f"S-LoRA {seed}")
        adapters = assign(names[: self.num_adapters], count, "power", self.alpha, seed)
        prompts = random.Random(f"S-LoRA prompts {seed}")
        now, samples = 0.0, []
        for adapter in adapters:
            now += source.gammavariate(self.cv**-2, self.cv**2 / self.req_rate)
            prompt = prompts.choices(range(vocab_size), k=source.randint(*self.input_range))
            samples.append(
                Sample(prompt=prompt, max_tokens=source.randint(*self.output_range), adapter=adapter, seconds=now)
            )
        return samples
