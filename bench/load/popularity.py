"""Popularity: the adapter of each request. All kinds are functions of a seed and the number of the request."""

import random
from collections.abc import Callable, Sequence
from itertools import accumulate

Draw = Callable[[int], int]  # number of the request -> number of the adapter
KINDS = ("uniform", "round-robin", "power", "zipf", "skewed", "distinct", "identical")
DEFAULT_ALPHA = {"power": 1.0, "zipf": 1.0, "skewed": 1.5}


def assign(names: Sequence[str], count: int, kind: str, alpha: float | None = None, seed: int = 0) -> list[str]:
    """Returns the name of the adapter of each of `count` requests; raises ValueError for what cannot be.

    - uniform: each alike. round-robin: in turn. identical: all the first one.
    - distinct: each request another one, as Punica has it; there have to be enough.
    - power: S-LoRA's, number floor(u ** (1 / alpha) * n) for an even u: 1 is uniform, less favours the first ones.
    - zipf: number i in proportion to (i + 1) ** -alpha.
    - skewed: each one alpha times as often as the next one, as SGLang and Punica have it (1.5 there).
    """
    if not names:
        raise ValueError("there is no adapter to choose from")
    if kind == "distinct" and len(names) < count:
        raise ValueError(f"{count} requests for distinct adapters need as many adapters; there are {len(names)}")
    draw = _draw(kind, len(names), _alpha(kind, alpha), random.Random(f"adapters {seed}"))
    return [names[draw(number)] for number in range(count)]


def _alpha(kind: str, alpha: float | None) -> float:
    value = DEFAULT_ALPHA.get(kind, 1.0) if alpha is None else alpha
    least = 1.0 if kind == "skewed" else 0.0
    if not value > least:
        raise ValueError(f"the alpha of {kind} popularity is {value}; it has to be above {least:g}")
    return value


def _draw(kind: str, count: int, alpha: float, source: random.Random) -> Draw:
    if kind == "uniform":
        return lambda _: source.randrange(count)
    if kind in ("round-robin", "distinct"):
        return lambda number: number % count
    if kind == "identical":
        return lambda _: 0
    if kind == "power":
        return lambda _: min(int(source.random() ** (1 / alpha) * count), count - 1)
    if kind not in DEFAULT_ALPHA:
        raise ValueError(f"no popularity is named {kind!r}; there are {', '.join(KINDS)}")
    weights = [(number + 1.0) ** -alpha if kind == "zipf" else alpha**-number for number in range(count)]
    sums = list(accumulate(weights))
    return lambda _: source.choices(range(count), cum_weights=sums)[0]
