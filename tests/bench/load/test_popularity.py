"""Each popularity spreads requests over adapters by its formula."""

from collections import Counter

import numpy as np
import pytest

from blora.bench.load.popularity import KINDS, assign

NAMES = [f"a{number}" for number in range(20)]
COUNT = 20_000
RANKS = np.arange(len(NAMES), dtype=float)


def shares(kind: str, alpha: float | None = None) -> np.ndarray:
    counts = Counter(assign(NAMES, COUNT, kind, alpha, seed=4))
    return np.array([counts[name] / COUNT for name in NAMES])


def even_parts(alpha: float) -> np.ndarray:
    """The share of each number floor(u ** (1 / alpha) * n), for an even u."""
    edges = (np.arange(len(NAMES) + 1) / len(NAMES)) ** alpha
    return np.diff(edges)


@pytest.mark.parametrize(
    ("kind", "alpha", "wanted"),
    [
        ("uniform", None, np.ones(20)),
        ("round-robin", None, np.ones(20)),
        ("identical", None, RANKS == 0),
        ("power", 1.0, np.ones(20)),
        ("power", 0.3, even_parts(0.3)),
        ("zipf", None, 1 / (RANKS + 1)),
        ("zipf", 0.6, (RANKS + 1) ** -0.6),
        ("skewed", None, 1.5**-RANKS),
        ("skewed", 1.1, 1.1**-RANKS),
    ],
)
def test_shares_are_those_of_the_formula(kind: str, alpha: float | None, wanted: np.ndarray) -> None:
    expected = wanted / wanted.sum()
    noise = np.sqrt(expected * (1 - expected) / COUNT)
    assert np.all(np.abs(shares(kind, alpha) - expected) <= 4.5 * noise + 1e-9)


def test_distinct_gives_each_request_another_adapter_or_is_refused() -> None:
    assert assign(NAMES, 20, "distinct") == NAMES
    with pytest.raises(ValueError, match="21 requests"):
        assign(NAMES, 21, "distinct")


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_all(kind: str) -> None:
    drawn = [assign(NAMES, 20, kind, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert (drawn[0] != drawn[2]) == (kind not in ("round-robin", "identical", "distinct"))


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="no popularity"):
        assign(NAMES, 1, "fair")
    with pytest.raises(ValueError, match="above 1"):
        assign(NAMES, 1, "skewed", 1.0)
    with pytest.raises(ValueError, match="above 0"):
        assign(NAMES, 1, "power", 0.0)
    with pytest.raises(ValueError, match="no adapter"):
        assign([], 1, "uniform")
