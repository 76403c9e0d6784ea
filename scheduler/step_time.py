"""StepTime: predicts the seconds of a step from the work in it, by a linear model that is fitted while steps run.

The parts of the work are chosen so that the steps of one kind say nothing about the costs that only another kind has: a
row that decodes computes its first token and reads its context, and only prompts have further tokens, and pairs of
them, and tokens whose logprobs are told. So hours of decoding leave what is known of prompts as it was.

Each measured step is divided by what was predicted for it, so that errors count relative to the step's time. The fit is
the least-squares one with costs of at least 0, one round of coordinate descent a step (Gauss and Seidel's). Steps of
one kind (those with the same parts) are forgotten exponentially as others of the kind follow, and much more slowly as
any follow. Where steps do not tell costs apart, costs keep their proportions, at first those of DEFAULT_COSTS; only
proportions, so that a slow start leaves nothing behind. What no step has had yet costs as much as the default costs say
on a machine as fast as the fastest of the last steps shows it to be. A step that took much longer than predicted counts
as no more than SURPRISE times as long, because a page fault or a machine that stood still says nothing about the next
step; a real change shows in all of the next steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from operator import mul
from typing import NamedTuple

KIND_MEMORY = 0.95  # fraction of a step's weight that is kept when the next one of its kind is noted
OTHER_MEMORY = 0.99  # fraction that is kept when a step of another kind is noted
ANCHOR_MEMORY = 0.997  # fraction of the known proportions that is kept when a step is noted
PROPORTIONS_WEIGHT = 0.001  # of the known proportions of the costs, in steps
SURPRISE = 2.0
SLOWER, FASTER = 1.01, 0.5  # by how much the scale of the default costs grows and falls in a step, at most
MIN_SECONDS = 1e-9  # that a step takes, though the clock may not have moved
NEWS = 0.05  # relative change of a prediction that is worth telling


class StepWork(NamedTuple):
    """The parts of a step's work, or of several steps' together."""

    num_steps: int = 0
    num_rows: int = 0
    num_further_tokens: int = 0  # new tokens beyond the first one of each row
    num_read_tokens: int = 0  # tokens whose KV is read, those of each row once
    num_further_pairs: int = 0  # pairs of a new token and one that it attends to, beyond those read once
    num_adapter_pages: int = 0  # pages of the adapters that are read
    num_adapted_tokens: int = 0  # uses of adapters by new tokens
    num_scored_tokens: int = 0  # tokens of prompts whose logprobs are told

    @staticmethod
    def of_row(start: int, num_new_tokens: int, num_adapted_tokens: int = 0, num_scored_tokens: int = 0) -> "StepWork":
        """The work of one row, without its adapters' pages. start: tokens computed before."""
        num_further = num_new_tokens - 1
        num_pairs = num_further * (2 * start + num_new_tokens) // 2
        num_read = start + num_new_tokens
        return StepWork(0, 1, num_further, num_read, num_pairs, 0, num_adapted_tokens, num_scored_tokens)

    @staticmethod
    def total(works: "Iterable[StepWork]") -> "StepWork":
        return StepWork(*map(sum, zip(*works, strict=True)))


class StepCosts(NamedTuple):
    """The seconds of each part of a step's work, in the order of StepWork. The default values are those of a small
    model on two cores."""

    step_seconds: float = 5e-3
    row_seconds: float = 3e-4
    token_seconds: float = 2.8e-4
    read_seconds: float = 1e-6
    pair_seconds: float = 2e-7
    adapter_page_seconds: float = 5e-5
    adapted_token_seconds: float = 1e-5
    scored_token_seconds: float = 1.2e-4

    def seconds(self, work: StepWork) -> float:
        """Predicts the time of the work."""
        return float(sum(map(mul, self, work)))

    @property
    def prompt_token_seconds(self) -> float:
        """The time of a token of a prompt, in a step of a long chunk."""
        return self.seconds(LONG_CHUNK) / LONG_CHUNK.num_read_tokens

    def differs(self, other: "StepCosts") -> bool:
        """Whether the two predict noticeably different times of some steps."""
        return any(
            abs(self.seconds(work) - other.seconds(work)) > NEWS * other.seconds(work) for work in EXAMPLES_OF_WORK
        )


DEFAULT_COSTS = StepCosts()
LONG_CHUNK = StepWork(1, 1, 511, 512, 511 * 256)
EXAMPLES_OF_WORK = (
    StepWork(1, 8, 0, 8 * 512),  # decodes
    StepWork(1, 8, 0, 8 * 512, 0, 8 * 16, 8),  # with adapters
    LONG_CHUNK,
    StepWork(1, 1, 511, 4608, 511 * 4352),  # after a long context
    LONG_CHUNK._replace(num_scored_tokens=512),
)


class StepTime:
    def __init__(self) -> None:
        self.costs = DEFAULT_COSTS
        self._told = DEFAULT_COSTS  # the costs that `take_costs` returned last
        self.num_noted = 0  # steps
        self._scale = 1.0  # of the default costs on this machine, with this model
        self._anchors = DEFAULT_COSTS  # the proportions that costs keep to where steps tell none apart
        self._fits: dict[tuple[int, ...], _Fit] = {}  # the parts of a kind of steps -> those steps

    def note(self, work: StepWork, seconds: float) -> None:
        """Notes the seconds that work with rows took, without copies of adapters."""
        seconds = max(seconds, MIN_SECONDS)
        self.num_noted += 1
        self._set_scale(seconds / DEFAULT_COSTS.seconds(work))
        for fit in self._fits.values():
            fit.weight *= OTHER_MEMORY
        predicted = max(self.costs.seconds(work), MIN_SECONDS)
        parts = tuple(part for part, amount in enumerate(work) if amount)
        shares = [work[part] / predicted for part in parts]
        self._fits.setdefault(parts, _Fit(parts)).add(shares, min(seconds / predicted, SURPRISE))
        self._descend(parts, predicted / max(self._anchors.seconds(work), MIN_SECONDS))

    def take_costs(self) -> StepCosts | None:
        """Returns the costs if they predict noticeably other times than those that it returned last, else None."""
        if not self.costs.differs(self._told):
            return None
        self._told = self.costs
        return self.costs

    def _set_scale(self, scale: float) -> None:
        """Follows the fastest steps, and has what no step has had yet cost so many times the default. The first steps
        are slow: they touch pages for the first time, and the machine may be busy with the start."""
        most = self._scale * SLOWER if self.num_noted > 1 else scale
        self._scale = min(most, max(scale, self._scale * FASTER))
        seen = {part for parts in self._fits for part in parts}
        scaled = [self._scale * cost for cost in DEFAULT_COSTS]
        self.costs, self._anchors = (
            StepCosts(*(known[part] if part in seen else cost for part, cost in enumerate(scaled)))
            for known in (self.costs, self._anchors)
        )

    def _descend(self, parts: Sequence[int], scale: float) -> None:
        """Moves the costs of the parts to what fits best: all of them in proportion, because most often it is the
        machine that changes; then each while the others stay. scale: that makes the anchors predict the last step as
        the costs did."""
        costs = list(self.costs)
        self._move(costs, {part: costs[part] for part in parts}, {})
        for part in parts:
            self._move(costs, {part: 1.0}, {part: scale * self._anchors[part]})
        self.costs = StepCosts(*costs)
        self._anchors = StepCosts(
            *(
                ANCHOR_MEMORY * anchor + (1 - ANCHOR_MEMORY) * cost
                for anchor, cost in zip(self._anchors, costs, strict=True)
            )
        )

    def _move(self, costs: list[float], direction: Mapping[int, float], anchors: Mapping[int, float]) -> None:
        """Moves costs to the best point in a direction. Both are by part. anchors: where costs are drawn to."""
        slope = square = 0.0
        for part, anchor in anchors.items():
            weight = PROPORTIONS_WEIGHT / (self._scale * DEFAULT_COSTS[part]) ** 2
            slope += weight * (anchor - costs[part])
            square += weight
        for fit in self._fits.values():
            slope += fit.weight * fit.slope(direction, costs)
            square += fit.weight * fit.square(direction)
        if square:
            for part, amount in direction.items():
                costs[part] = max(costs[part] + amount * slope / square, 0.0)


class _Fit:
    """The sums over the steps of one kind that a least-squares fit is made of."""

    def __init__(self, parts: tuple[int, ...]) -> None:
        self.parts = parts
        self._places = {part: place for place, part in enumerate(parts)}
        self.weight = 1.0
        self._products = [[0.0] * len(parts) for _ in parts]  # of the amounts of two parts, per predicted second each
        self._sums = [0.0] * len(parts)  # of an amount times the step's time, both per predicted second

    def add(self, shares: Sequence[float], ratio: float) -> None:
        """Adds a step. shares: its amounts of work per predicted second. ratio: its time, measured by predicted."""
        memory, self.weight = KIND_MEMORY * self.weight, 1.0
        self._products = [
            [memory * product + one * other for product, other in zip(row, shares, strict=True)]
            for row, one in zip(self._products, shares, strict=True)
        ]
        self._sums = [memory * total + share * ratio for total, share in zip(self._sums, shares, strict=True)]

    def slope(self, direction: Mapping[int, float], costs: Sequence[float]) -> float:
        """Half the slope at which the squared error falls in a direction."""
        slope = 0.0
        for part, amount in direction.items():
            if (at := self._places.get(part)) is not None:
                explained = sum(map(mul, self._products[at], map(costs.__getitem__, self.parts)))
                slope += amount * (self._sums[at] - explained)
        return slope

    def square(self, direction: Mapping[int, float]) -> float:
        found = [(self._places[part], amount) for part, amount in direction.items() if part in self._places]
        return sum(one * other * self._products[at][beside] for at, one in found for beside, other in found)
