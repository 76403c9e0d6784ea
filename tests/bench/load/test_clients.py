"""Shares of clients leave or read slowly, as their seed says; S-LoRA's traffic follows its formulas."""

import statistics
from itertools import pairwise

import pytest

from blora.bench.load import Planned
from blora.bench.load.clients import Clients
from blora.bench.load.slora import SLoRA

PLAN = [Planned(seconds=0.0, prompt=[1], max_tokens=10)] * 4000


def test_each_share_is_that_of_the_clients_and_one_client_does_one_thing() -> None:
    plan = Clients(cancelling=0.2, leaving=0.1, slow=0.3, leave_within=2.0, read_pause=0.5).behave(PLAN, 1)
    cancelling = [planned.cancel_after for planned in plan if planned.cancel_after is not None]
    leaving = [planned.cancel_seconds for planned in plan if planned.cancel_seconds is not None]
    slow = [planned for planned in plan if planned.read_pause]
    for found, share in ((cancelling, 0.2), (leaving, 0.1), (slow, 0.3)):
        assert len(found) / len(plan) == pytest.approx(share, abs=0.03)
    assert set(cancelling) == set(range(1, 11))
    assert min(leaving) >= 0 and max(leaving) <= 2.0 and statistics.fmean(leaving) == pytest.approx(1.0, abs=0.1)
    assert sum(p.cancel_after is None and p.cancel_seconds is None and not p.read_pause for p in plan) == len(
        plan
    ) - len(cancelling) - len(leaving) - len(slow)


def test_the_seed_decides_all_and_no_share_changes_nothing() -> None:
    clients = Clients(cancelling=0.5)
    assert clients.behave(PLAN, 1) == clients.behave(PLAN, 1) != clients.behave(PLAN, 2)
    assert Clients().behave(PLAN, 1) == PLAN


@pytest.mark.parametrize("fields", [{"slow": -0.1}, {"slow": 0.6, "leaving": 0.6}])
def test_shares_beyond_all_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares of clients"):
        Clients(**fields).behave(PLAN, 1)


def test_s_loras_traffic() -> None:
    shape = SLoRA(num_adapters=10, alpha=0.4, req_rate=50.0, cv=2.0, duration=200.0, input_range=(2, 5))
    names = [f"a{number}" for number in range(12)]
    samples = shape.draw(names, 100, 3)
    seconds = [sample.seconds or 0.0 for sample in samples]
    gaps = [after - before for before, after in pairwise([0.0, *seconds])]
    assert len(samples) == 10_000
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.07)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(2.0, rel=0.1)
    assert sum(sample.adapter == "a0" for sample in samples) / 10_000 == pytest.approx(0.1**0.4, abs=0.02)
    assert {len(sample.prompt) for sample in samples} == {2, 3, 4, 5}
    assert not {"a10", "a11"} & {sample.adapter for sample in samples}
    assert shape.draw(names, 100, 3) == samples != shape.draw(names, 100, 4)
    with pytest.raises(ValueError, match="10 adapters"):
        shape.draw(names[:9], 100, 3)
