"""Mix: which adapter and tenant each request of a load has, and how its clients behave. With a dataset and arrivals it
makes a plan; each choice has a random source of its own, so that one option changes nothing else."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .datasets import Sample
from .plan import Planned
from .popularity import assign


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    adapters: Sequence[str] = ()  # none: the base model
    popularity: str = "uniform"
    alpha: float | None = None
    base_share: float = 0.0  # of the requests, that have no adapter
    tenants: Mapping[str, float] = field(default_factory=lambda: {"": 1.0})  # and their shares of the requests
    deadline: float | None = None  # seconds from a request's arrival to the end of its answer
    sampling: Mapping[str, Any] = field(default_factory=dict)  # of all requests; a sample's own goes first

    def plan(self, samples: Sequence[Sample], seconds: Sequence[float], seed: int) -> list[Planned]:
        """Returns a request for each sample, by arrival. seconds: when each arrives, but for those samples that say so
        themselves."""
        adapters = self._adapters(len(samples), seed)
        tenants = random.Random(f"tenants {seed}").choices(
            list(self.tenants), list(self.tenants.values()), k=len(samples)
        )
        plan = [
            Planned(
                seconds=second if sample.seconds is None else sample.seconds,
                prompt=sample.prompt,
                max_tokens=sample.max_tokens,
                adapter=adapter if sample.adapter is None else sample.adapter,
                tenant=tenant,
                deadline=self.deadline,
                sampling={**self.sampling, **sample.sampling},
                expected=sample.expected,
                check=sample.check,
            )
            for sample, second, adapter, tenant in zip(samples, seconds, adapters, tenants, strict=True)
        ]
        return sorted(plan, key=lambda planned: planned.seconds)

    def _adapters(self, count: int, seed: int) -> list[str]:
        if not self.adapters:
            return [""] * count
        source = random.Random(f"base model {seed}")
        chosen = assign(self.adapters, count, self.popularity, self.alpha, seed)
        return ["" if source.random() < self.base_share else name for name in chosen]
