"""Arrivals follow the formulas of `vllm bench serve`."""

import math
import statistics
from itertools import pairwise

import pytest

from blora.bench.load.arrivals import Ramp, arrival_seconds

COUNT = 20_000


def gaps(seconds: list[float]) -> list[float]:
    return [after - before for before, after in pairwise([0.0, *seconds])]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_variation_of_their_gamma_distribution(burstiness: float) -> None:
    found = gaps(arrival_seconds(COUNT, 5.0, burstiness, seed=3))
    assert statistics.fmean(found) == pytest.approx(1 / 5.0)  # scaled so that it is exact
    assert statistics.stdev(found) / statistics.fmean(found) == pytest.approx(burstiness**-0.5, rel=0.04)


def test_a_poisson_process_has_exponential_gaps() -> None:
    """Kolmogorov-Smirnov at a level of 0.1 %."""
    found = sorted(gaps(arrival_seconds(COUNT, 5.0, seed=1)))
    far = max(abs((number + 0.5) / COUNT - (1 - math.exp(-5.0 * gap))) for number, gap in enumerate(found))
    assert far < 1.95 / math.sqrt(COUNT)


def test_the_last_of_n_requests_arrives_at_n_by_rate_and_the_seed_decides_all() -> None:
    runs = [arrival_seconds(200, 8.0, 0.5, seed) for seed in (1, 1, 2)]
    assert all(run[-1] == pytest.approx(25.0) for run in runs)
    assert runs[0] == runs[1] != runs[2]
    assert all(run == sorted(run) for run in runs)


def test_all_at_once_and_perfectly_steady() -> None:
    assert arrival_seconds(3, math.inf) == [0.0, 0.0, 0.0]
    assert arrival_seconds(4, 2.0, math.inf) == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert arrival_seconds(0, 2.0) == []


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_a_ramp_goes_from_its_first_rate_to_its_last(kind: str) -> None:
    ramp = Ramp(kind, 2.0, 20.0)  # type: ignore[arg-type]
    found = gaps(arrival_seconds(COUNT, 1.0, seed=5, ramp=ramp))
    tenth = COUNT // 10
    for share in (0.05, 0.45, 0.95):
        begin = int(share * COUNT) - tenth // 2
        wanted = statistics.fmean(1 / ramp.rate(place / COUNT) for place in range(begin, begin + tenth))
        assert statistics.fmean(found[begin : begin + tenth]) == pytest.approx(wanted, rel=0.08)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((1, 0.0), "rate"),
        ((1, math.nan), "rate"),
        ((1, 1.0, 0.0), "burstiness"),
        ((1, 1.0, 1.0, 0, Ramp("linear", 0.0, 5.0)), "ramp"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments: tuple[object, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        arrival_seconds(*arguments)  # type: ignore[arg-type]
