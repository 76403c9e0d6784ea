"""What admission counts, and what it says when it refuses."""

import random
import re
from typing import Any

import pytest

from blora.engine.errors import QueueFull
from blora.engine.front_end.admission import OTHERS, Admission, QueueLimits
from blora.engine.front_end.backlog import Backlog, Load, Place
from blora.engine.front_end.caution import SLACK, Caution, Cautions
from blora.engine.front_end.demand import Demand, TextSizes, num_certain_tokens
from blora.engine.identity.tenant import Quotas
from blora.scheduler import PROMPT_CREDIT, SamplingParams, StepCosts, StepReport

STEP = StepReport(
    seconds=0.02, num_decoding_rows=4, prompt_seconds=0.01, num_running=4, num_waiting=1, num_tokens=8, is_cut=True
)  # half of a step's time is left to prompts
COSTS = StepCosts(step_seconds=0.006, row_seconds=0.001, token_seconds=0.001, read_seconds=0.0, pair_seconds=0.0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock | None = None, **limits: Any) -> Admission:
    named = ("gold",)
    return Admission(QueueLimits(**{"max_requests": 1000} | limits), "fair", 64, named, clock or Clock())


def measured(clock: Clock | None = None, **limits: Any) -> Admission:
    admission = make(clock, **limits)
    for _ in range(20):
        admission.note_step(STEP, COSTS)
    return admission


def demand(num_prompt_tokens: int = 100, **fields: Any) -> Demand:
    defaults: dict[str, Any] = {
        "tenant": "", "priority": 0, "flow": (), "weights": (1.0, 1.0), "num_samples": 1, "max_tokens": 10,
        "num_certain_tokens": 10, "deadline": None, "first_token_deadline": None,
    }  # fmt: skip
    return Demand(num_prompt_tokens=num_prompt_tokens, **defaults | fields)


def fill(admission: Admission, num: int, **fields: Any) -> None:
    for _ in range(num):
        one = demand(**fields)
        admission.check([one])
        admission.enter(object(), one)


def refusal(admission: Admission, *demands: Demand) -> QueueFull:
    with pytest.raises(QueueFull) as raised:
        admission.check(demands)
    return raised.value


def test_an_idle_engine_and_one_that_has_not_computed_refuse_nothing() -> None:
    hopeless = demand(100_000, deadline=100.001, first_token_deadline=100.001)
    measured(max_seconds=0.001).check([hopeless])
    unmeasured = make(max_seconds=0.001)
    fill(unmeasured, 50)
    unmeasured.check([hopeless])


def test_a_prompt_is_not_refused_for_its_own_length_where_no_other_waits() -> None:
    """Costs that a slow start has spoiled are learned anew from such prompts."""
    admission = measured()
    fill(admission, 1)
    long = demand(8192, first_token_deadline=103.0)
    assert "first token" in str(refusal(admission, long))
    decoding, waiting = demand(), demand()
    other = measured()
    other.enter("decoding", decoding)
    other.note_first_token("decoding", 0)
    other.check([long])
    other.enter("waiting", waiting)
    assert "first token" in str(refusal(other, long))


def test_costs_that_are_all_in_the_context_still_predict() -> None:
    """The fit may leave nothing to steps and rows. Then a step is predicted to take what steps took."""
    admission = make(max_seconds=5.0)
    for _ in range(20):
        admission.note_step(STEP, StepCosts(0.0, 0.0, 0.001, 0.001, 0.0))
    fill(admission, 5)
    late = refusal(admission, demand(deadline=100.1, num_certain_tokens=1000, max_tokens=1000))
    assert "the answer would be complete in about 2" in str(late)


def test_a_wait_that_is_too_long_is_refused_with_the_time_after_which_it_is_not() -> None:
    clock = Clock()
    admission = measured(clock, max_seconds=5.0)
    # Each prompt takes 0.1 s, in ten chunks, with 7 ms of each step besides.
    fill(admission, 27)
    error = refusal(admission, demand())
    assert "would wait for about 5." in str(error) and error.retry_after is not None and 0 < error.retry_after < 1
    assert admission.facts.num_refused == 1 and admission.facts.num_queued_tokens == 2700
    second = refusal(admission, demand())
    assert second.retry_after is not None and second.retry_after > error.retry_after  # behind the first
    clock.now += 60
    assert refusal(admission, demand()).retry_after == error.retry_after


@pytest.mark.parametrize(("patience", "is_refused"), [(0.2, True), (2.0, False)])
def test_deadlines_of_first_tokens(patience: float, is_refused: bool) -> None:
    admission = measured()
    fill(admission, 3)
    one = demand(first_token_deadline=100.0 + patience)
    if is_refused:
        assert "first token" in str(refusal(admission, one))
    else:
        admission.check([one])


def test_a_deadline_leaves_time_for_the_answer() -> None:
    admission = measured()
    fill(admission, 1)
    admission.check([demand(deadline=103.0, num_certain_tokens=10)])
    error = refusal(admission, demand(deadline=103.0, num_certain_tokens=300, max_tokens=300))
    assert "complete" in str(error)
    # The length of an answer that may stop is that of others, once some have ended.
    admission.enter("other", demand())
    admission.note_first_token("other", 0)
    admission.leave("other", 5, False)
    admission.check([demand(deadline=103.0, num_certain_tokens=1, max_tokens=300)])


def test_the_queue_is_bounded_in_requests_and_tokens() -> None:
    admission = make(max_requests=4, max_tokens=350)
    fill(admission, 3)
    assert "300 tokens of prompts wait, at most 350" in str(refusal(admission, demand()))
    fill(admission, 1, num_prompt_tokens=20, tenant="gold")
    assert "4 requests are unfinished, at most 4" in str(refusal(admission, demand(1)))
    assert admission.facts.num_refused == 2


def test_a_prompt_longer_than_the_queue_is_taken_when_there_is_no_other() -> None:
    admission = make(max_tokens=450)
    admission.check([demand(1000)])


def test_no_tenant_can_fill_the_queue() -> None:
    admission = make(max_requests=100, max_tokens=10_000)
    with pytest.raises(QueueFull, match="of this tenant"):
        fill(admission, 100, tenant="greedy")
    with pytest.raises(QueueFull, match="of this tenant"):
        fill(admission, 100, tenant="another")
    fill(admission, 3, tenant="modest")
    admission.check_integrity(admission._entries)


def test_a_batch_is_taken_whole_or_not_at_all() -> None:
    admission = make(max_requests=10)
    admission.check([demand()] * 10)
    assert admission.facts.num_queued_tokens == 0
    refusal(admission, *[demand()] * 11)
    assert "0 requests are unfinished" in str(refusal(admission, demand(num_samples=11)))


def test_invented_tenants_share_one() -> None:
    admission = make(max_tenants=3)
    for name in ("a", "b", "c"):
        fill(admission, 1, tenant=admission.tenant(name))
    assert [admission.tenant(name) for name in ("a", "d", "e", "gold", "")] == ["a", OTHERS, OTHERS, "gold", ""]


def test_a_tenant_that_has_nothing_left_is_forgotten() -> None:
    admission = make(max_tenants=1)
    for number in range(50):
        assert admission.tenant(f"tenant {number}") == f"tenant {number}"
        admission.enter(number, demand(tenant=f"tenant {number}"))
        if number % 2:
            admission.note_first_token(number, 0)
        admission.leave(number, None, number % 2 == 0)
        admission.check_integrity(admission._entries)
    assert admission.facts.num_expired == 25 and admission.facts.num_queued_tokens == 0


def test_a_count_that_is_wrong_is_noticed() -> None:
    admission = make()
    admission.enter("one", demand())
    with pytest.raises(RuntimeError, match="other requests than the unfinished"):
        admission.check_integrity([])
    admission._tokens[""] += 1
    with pytest.raises(RuntimeError, match="counts other requests"):
        admission.check_integrity(["one"])


# The order of service.


def ahead(backlog: Backlog, priority: int = 0, tenant: str = "", flow: str = "", weight: float = 1.0) -> float:
    own = Load(1, 10, 50, 10)
    return backlog.ahead(backlog.place(priority, tenant, flow, (weight, 1.0)), own).num_prompt_tokens


def put(backlog: Backlog, num: int, priority: int = 0, tenant: str = "", flow: str = "", weight: float = 1.0) -> None:
    for _ in range(num):
        backlog.add(backlog.place(priority, tenant, flow, (weight, 1.0)), Load(1, 10, 50, 10))


def serve(backlog: Backlog, place: Place, load: Load) -> None:
    backlog.add(place, load)
    backlog.serve(place, load)


def test_a_request_waits_for_more_urgent_ones_and_its_own_tenants() -> None:
    backlog = Backlog("fair")
    put(backlog, 3, priority=0)
    put(backlog, 5, priority=1)
    put(backlog, 7, priority=2)
    assert [ahead(backlog, priority) for priority in (-1, 0, 1, 2)] == [0, 30, 80, 150]


def test_a_tenant_waits_for_its_share_of_the_others() -> None:
    backlog = Backlog("fair")
    put(backlog, 100, tenant="flood")
    assert ahead(backlog, tenant="alone") == 10  # as much of the flood as of its own
    assert ahead(backlog, tenant="alone", weight=2.0) == 5
    put(backlog, 2, tenant="small")
    assert ahead(backlog, tenant="alone") == 20
    put(backlog, 4, tenant="alone")
    assert ahead(backlog, tenant="alone") == 40 + 50 + 20
    assert ahead(backlog, tenant="flood") == 1000 + 40 + 20


def test_a_tenant_that_asked_for_less_waits_for_less() -> None:
    """Up to the credit that it has saved up, and by what it has received since."""
    backlog = Backlog("fair")
    flood, alone, own = (backlog.place(0, tenant, "", (1.0, 1.0)) for tenant in ("flood", "alone", "own"))
    put(backlog, 3, tenant="flood")
    serve(backlog, flood, Load(1, 1000, 0, 1000))
    assert ahead(backlog, tenant="new") == 0
    assert backlog.ahead(own, Load(1, PROMPT_CREDIT + 10, 0, 0)).num_prompt_tokens == 10
    put(backlog, 1, tenant="alone")
    assert ahead(backlog, tenant="new") == 10
    serve(backlog, alone, Load(1, 7, 0, 0))
    assert ahead(backlog, tenant="new") == 3
    assert backlog.ahead(flood, Load(1, 10, 0, 10)).num_prompt_tokens == 30 + 10
    backlog.check_integrity()


def test_within_a_tenant_the_same_holds_for_adapters() -> None:
    backlog = Backlog("fair")
    put(backlog, 100, flow="popular")
    put(backlog, 1, flow="rare")
    assert ahead(backlog, flow="rare") == 10 + 20
    assert ahead(backlog, flow="new") == 10 + 10


def test_requests_of_other_adapters_that_will_come_are_served_before_those_that_queue_for_one() -> None:
    """They come as often as those that run have come, up to their adapter's share."""
    backlog, own = Backlog("fair"), Load(1, 10, 50, 10)
    popular, rare, other = (backlog.place(0, "", flow, (1.0, 1.0)) for flow in ("popular", "rare", "other"))
    put(backlog, 5, flow="popular")
    for place in (popular, rare, rare):
        serve(backlog, place, own)
    assert backlog.ahead(popular, own).num_prompt_tokens == 50
    assert backlog.ahead(popular, own, coming=1.5).num_prompt_tokens == 50 + 30
    assert backlog.ahead(popular, own, coming=9.0).num_prompt_tokens == 50 + 60
    assert backlog.ahead(other, own, coming=9.0).num_prompt_tokens == 10 + 10
    backlog.check_integrity()
    for place in (popular, rare, rare):
        backlog.end(place, own)
    assert backlog.ahead(popular, own, coming=9.0).num_prompt_tokens == 50
    backlog.check_integrity()


@pytest.mark.parametrize(("policy", "expected"), [("fcfs", 60), ("priority", 30)])
def test_other_policies_know_no_tenants(policy: str, expected: int) -> None:
    backlog = Backlog(policy)
    put(backlog, 3, priority=0, tenant="a")
    put(backlog, 3, priority=1, tenant="b")
    assert ahead(backlog, priority=0, tenant="c") == expected


def test_what_leaves_the_backlog_leaves_nothing() -> None:
    backlog = Backlog("fair")
    places = [backlog.place(n % 3, f"tenant {n % 5}", n % 7, (1.0, 1.0)) for n in range(100)]
    for place in places:
        backlog.add(place, Load(1, 10, 50, 10))
    backlog.check_integrity()
    for place in places:
        backlog.remove(place, Load(1, 10, 50, 10))
        backlog.check_integrity()
    assert backlog.load == Load() and not backlog._all.parts


def test_the_certain_part_of_an_answer() -> None:
    assert num_certain_tokens(SamplingParams(ignore_eos=True), 50) == 50
    assert num_certain_tokens(SamplingParams(ignore_eos=True, stop=["x"]), 50) == 1
    assert num_certain_tokens(SamplingParams(min_tokens=7), 50) == 7


def test_sizes_of_texts_are_learned() -> None:
    sizes = TextSizes()
    assert sizes.num_tokens(400) == 100 and sizes.num_tokens(0) == 1
    for _ in range(300):
        sizes.note(100, 50)
    assert sizes.num_tokens(400) == pytest.approx(200, abs=2)


# Caution.


def test_one_of_32_outcomes_exceeds_the_margin() -> None:
    caution, draw, num_late = Caution(), random.Random(0), 0
    for number in range(4000):
        outcome = draw.uniform(0.5, 2.0)
        num_late += number >= 1000 and outcome > caution.of(1.0)
        caution.note(1.0, outcome, number, number + 0.5)
    assert num_late / 3000 == pytest.approx(1 / 32, rel=0.3)


def test_what_is_late_together_counts_once() -> None:
    """A machine that stood still for 5 s says little about the next wait."""
    caution = Caution()
    for number in range(1000):
        caution.note(0.1, 5.0, predicted_at=number / 1000, now=6.0 + number / 1000)
    assert caution.factor < 1.1 * (1 + Caution.STEP) + 1e-9


def test_a_tenants_errors_are_its_own_and_tenants_are_forgotten() -> None:
    cautions = Cautions(max_tenants=3)
    cautions.of_tenant("flood").first_token.note(0.1, 5.0, 0.0, 1.0)
    assert cautions.of_tenant("calm").first_token.factor == Caution().factor
    for number in range(50):
        cautions.of_tenant(f"tenant {number}")
        cautions.of_tenant("flood")
    assert len(cautions._tenants) == 3
    assert cautions.of_tenant("flood").first_token.factor > Caution().factor


def test_what_was_dropped_after_it_had_waited_widens_the_margin() -> None:
    """Who learns only from what was served learns nothing from the worst misses."""
    admission = measured(clock := Clock(), max_seconds=10.0)
    fill(admission, 1)
    admission.enter("one", demand())
    clock.now += 5.0
    admission.leave("one", None, True)
    assert admission._cautions.of_tenant("").first_token.factor > Caution().factor


def test_a_fit_that_leaves_no_time_to_rows_still_predicts() -> None:
    """Costs may all be given to the tokens of prompts, where no step tells them apart."""
    admission = make(max_seconds=100.0)
    nothing = StepCosts(step_seconds=0.0, row_seconds=0.0, token_seconds=0.001, read_seconds=0.0, pair_seconds=0.0)
    for _ in range(10):
        admission.note_step(STEP, nothing)
    for number in range(3):
        admission.enter(number, demand())


def test_a_quota_bounds_a_tenant_and_nobody_else() -> None:
    admission, quotas = make(), Quotas(requests=3, queued_tokens=1000)
    fill(admission, 2, tenant="acme", quotas=quotas)
    assert "4 requests" in str(refusal(admission, demand(tenant="acme", quotas=quotas, num_samples=2)))
    assert "1001 queued tokens" in str(refusal(admission, demand(801, tenant="acme", quotas=quotas)))
    two = [demand(tenant="acme", quotas=quotas)] * 2
    assert refusal(admission, *two).cause == "tenant"
    admission.check([demand(800, tenant="acme", quotas=quotas), demand(5000, tenant="other", num_samples=9)])


def test_what_alone_is_too_much_is_not_to_be_tried_again() -> None:
    admission, quotas = make(max_requests=8), Quotas(requests=3, queued_tokens=1000)
    never = [demand(num_samples=9), demand(num_samples=4, quotas=quotas), demand(1001, quotas=quotas)]
    assert [refusal(admission, one).retry_after for one in never] == [None] * 3
    fill(admission, 2, quotas=quotas)
    later = [demand(num_samples=8), demand(num_samples=3, quotas=quotas), demand(1000, quotas=quotas)]
    assert None not in [refusal(admission, one).retry_after for one in later]


def test_a_prompt_longer_than_the_queue_is_taken_when_the_engine_is_idle() -> None:
    admission = make(max_tokens=1000)
    admission.check([demand(5000)])
    fill(admission, 1)
    assert refusal(admission, demand(5000)).retry_after is not None


def test_a_tenant_that_credentials_prove_counts_as_itself_however_many_there_are() -> None:
    admission = make(max_tenants=2)
    fill(admission, 1, tenant="a")
    fill(admission, 1, tenant="b")
    assert admission.tenant("c") == OTHERS and admission.tenant("c", is_proven=True) == "c"
    admission.check([demand(tenant="c", is_proven=True, quotas=Quotas(requests=1))])


def test_such_a_tenant_is_judged_by_its_own_outcomes() -> None:
    admission = measured(max_tenants=1)
    fill(admission, 3, tenant="stranger")
    one = demand(tenant="proven", is_proven=True, first_token_deadline=101.0)
    admission.check([one])
    admission._cautions.of_tenant("proven").first_token.factor = Caution.MOST
    assert "first token" in str(refusal(admission, one))


def test_what_a_tenant_asks_counts_with_what_it_has() -> None:
    admission = make(max_requests=14)
    fill(admission, 7, tenant="a")
    fill(admission, 5, tenant="b")
    admission.check([demand(tenant="a", num_samples=1)])  # 8 of at most 4 times the 2 that are free
    assert "7 requests are unfinished of this tenant, at most 8" in str(
        refusal(admission, demand(tenant="a", num_samples=2))
    )
    admission.check([demand(tenant="b", num_samples=2)])


def test_a_refusal_says_how_much_time_is_left() -> None:
    admission = measured()
    fill(admission, 5)
    assert "and the deadline passes in 0.05 s;" in str(refusal(admission, demand(deadline=100.05)))


def test_each_token_of_a_prompt_attends_to_those_before() -> None:
    admission = make()
    for _ in range(20):
        admission.note_step(
            STEP._replace(is_cut=False, num_waiting=0), StepCosts(0.0, 0.0, 0.0, 0.0, pair_seconds=1e-6)
        )
    fill(admission, 1)
    late = refusal(admission, demand(2000, first_token_deadline=100.1))
    assert float(re.findall(r"in about ([0-9.]+) s", str(late))[0]) == pytest.approx(2.0, rel=0.2)  # 2,000,000 pairs


def test_logprobs_of_a_prompt_take_time_and_are_not_cached() -> None:
    admission = make()
    for _ in range(20):
        costs = StepCosts(0.0, 0.0, 0.001, 0.0, 0.0, scored_token_seconds=0.0005)
        admission.note_step(STEP._replace(is_cut=False, num_waiting=0), costs)
    for number in range(200):
        admission.enter(number, demand())
        admission.note_first_token(number, 100)
        admission.leave(number, 1, is_too_late=False)
    fill(admission, 1)
    admission.check([demand(2000, first_token_deadline=100.1)])
    late = refusal(admission, demand(2000, num_scored_tokens=2000, first_token_deadline=100.1))
    assert float(re.findall(r"in about ([0-9.]+) s", str(late))[0]) == pytest.approx(3.0, rel=0.2)


def test_an_accepted_request_waits_twice_as_long_as_any_may_be_predicted_to() -> None:
    clock = Clock()
    admission = measured(clock, max_seconds=2.5)
    assert admission.begin_by() == 100.0 + 5.0 and make().begin_by() is None
    late = admission.waited_too_long()
    assert "has waited 5.0 s" in str(late) and late.retry_after == 0.1


def test_what_waits_is_counted_with_its_samples_and_the_prices_of_its_tokens() -> None:
    admission = make()
    admission.enter("one", demand(100, num_samples=3, num_certain_tokens=20, max_tokens=20))
    assert admission._backlog.load == Load(3, 100, 5000, 100 * 1 + 3 * 20 * 2)


def seconds(error: QueueFull) -> float:
    return float(re.findall(r"in about ([0-9.]+) s", str(error))[0])


def test_an_answer_of_one_token_is_complete_with_its_first() -> None:
    admission = measured()
    fill(admission, 5)
    fields = {"num_certain_tokens": 1, "max_tokens": 1}
    first = seconds(refusal(admission, demand(first_token_deadline=100.0, **fields)))
    assert seconds(refusal(admission, demand(deadline=100.0, **fields))) == pytest.approx(first + SLACK, abs=0.006)


def outcome(clock: Clock, num_tokens: int | None, token_seconds: float) -> tuple[Admission, float, float]:
    """The admission and its cautions, of first tokens and others, after a request whose first token came 0.3 s late."""
    admission = measured(clock)
    admission.enter("before", demand())  # for an idle engine nothing is predicted
    admission.enter("late", demand())
    prediction = admission._entries["late"].prediction
    assert prediction is not None
    clock.now += prediction.wait + prediction.prompt + 0.3
    admission.note_first_token("late", 0)
    clock.now += token_seconds * 9
    admission.leave("late", num_tokens, False)
    caution = admission._cautions.of_tenant("")
    return admission, caution.first_token.factor, caution.token.factor


def test_outcomes_are_compared_with_what_was_predicted_of_them() -> None:
    fresh, raised = Caution().factor, Caution().factor * (1 + Caution.STEP)
    admission, first_token, token = outcome(Clock(), 10, 5.0)
    assert (first_token, token) == (pytest.approx(raised), pytest.approx(raised))
    assert admission.outcomes.predicted.num == admission.outcomes.measured.num == 1
    assert admission.outcomes.measured.sum == pytest.approx(admission.outcomes.predicted.sum + 0.3)
    assert outcome(Clock(), 10, 0.001)[2] < fresh
    assert outcome(Clock(), 2, 0.001)[2] < fresh  # one token came after the first
    assert outcome(Clock(), 1, 5.0)[2] == outcome(Clock(), None, 5.0)[2] == fresh


def test_an_answer_that_nobody_awaited_is_compared_with_nothing() -> None:
    clock = Clock()
    admission = measured(clock)
    admission.enter("alone", demand())
    clock.now += 100
    admission.note_first_token("alone", 0)
    clock.now += 100
    admission.leave("alone", 10, False)
    assert admission._cautions.of_tenant("").first_token.factor == Caution().factor
    assert admission.outcomes.predicted.num == 0 and admission.facts.num_expired == 0


def test_refusals_ask_to_wait_within_bounds() -> None:
    admission = measured(max_seconds=0.5)
    fill(admission, 3)
    with pytest.raises(QueueFull):
        fill(admission, 100)
    waits = [refusal(admission, demand(2000)).retry_after for _ in range(50)]
    assert waits == sorted(waits, key=lambda wait: wait or 0.0) and waits[-1] == 30.0
    small = make(max_requests=2)
    fill(small, 2)
    assert refusal(small, demand()).retry_after == 0.1
