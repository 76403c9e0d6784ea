"""StepTime: predictions come near the truth, from the first steps on, whatever the machine, and stay there."""

import random

import pytest
from fakes import make_request, make_scheduler

from blora.scheduler import DEFAULT_COSTS, RowResult, SamplingParams, Scheduler, StepCosts, StepTime, StepWork

SMALL = StepCosts(7e-3, 1e-4, 3e-4, 1e-6, 5e-8, 3e-5, 2e-5, 2e-4)  # a small model on two cores
TINY = StepCosts(2e-4, 1e-5, 2e-6, 1e-8, 1e-9, 3e-6, 2e-7, 4e-6)
LARGE = StepCosts(12e-3, 1e-5, 2.5e-5, 3e-8, 1e-10, 3e-5, 1e-6, 1e-5)  # a large model on a GPU
SLOW = StepCosts(0.4, 6e-3, 2e-2, 5e-5, 1e-5, 1e-3, 1e-4, 2e-3)


class Trace:
    """Random steps on a machine of which the true costs are known; the times have noise of 5 %."""

    def __init__(self, truth: StepCosts, seed: int = 0) -> None:
        self.truth = truth
        self.draw = random.Random(f"steps {seed}")
        self.model = StepTime()

    def decoding(self) -> StepWork:
        rows = [StepWork.of_row(self.draw.randint(1, 2000), 1, index % 2) for index in range(self.draw.randint(1, 32))]
        num_pages = self.draw.choice([0, self.draw.randint(1, 300)]) if len(rows) > 1 else 0
        return StepWork.total([StepWork(1, num_adapter_pages=num_pages), *rows])

    def with_prompt(self, is_scored: bool = False) -> StepWork:
        start, num_tokens = self.draw.choice([0, self.draw.randint(0, 4000)]), self.draw.randint(16, 512)
        prompt = StepWork.of_row(start, num_tokens, num_scored_tokens=num_tokens if is_scored else 0)
        return StepWork.total([self.decoding(), prompt])

    def any(self) -> StepWork:
        return self.with_prompt(self.draw.random() < 0.3) if self.draw.random() < 0.3 else self.decoding()

    def run(self, work: StepWork, slower: float = 1.0) -> None:
        self.model.note(work, self.truth.seconds(work) * slower * self.draw.lognormvariate(0, 0.05))

    def error(self, works: list[StepWork]) -> float:
        """The relative error that nine of ten predictions stay below."""
        errors = [abs(self.model.costs.seconds(work) / self.truth.seconds(work) - 1) for work in works]
        return sorted(errors)[len(works) * 9 // 10]


@pytest.mark.parametrize("truth", [SMALL, TINY, LARGE, SLOW], ids=["small", "tiny", "large", "slow"])
@pytest.mark.parametrize("seed", range(3))
def test_it_learns_any_machine(truth: StepCosts, seed: int) -> None:
    trace = Trace(truth, seed)
    for _ in range(200):
        trace.run(trace.any())
    assert trace.error([trace.any() for _ in range(100)]) < 0.15


@pytest.mark.parametrize("truth", [SMALL, TINY, LARGE, SLOW], ids=["small", "tiny", "large", "slow"])
def test_the_first_predictions_are_sane(truth: StepCosts) -> None:
    """The first step is slow, because everything is touched for the first time."""
    trace = Trace(truth)
    trace.run(trace.decoding(), slower=10)
    for _ in range(15):
        trace.run(trace.any())
    assert trace.error([trace.decoding() for _ in range(100)]) < 0.6
    for work in [trace.with_prompt() for _ in range(100)]:
        assert 0.2 < trace.model.costs.seconds(work) / trace.truth.seconds(work) < 5


def test_outliers_count_little() -> None:
    trace = Trace(SMALL)
    for index in range(300):
        trace.run(trace.any(), slower=50 if index % 60 == 30 else 1)
    assert trace.error([trace.any() for _ in range(100)]) < 0.25


def test_a_long_time_of_decoding_leaves_what_is_known_of_prompts() -> None:
    trace = Trace(SMALL)
    for _ in range(200):
        trace.run(trace.any())
    prompts = [trace.with_prompt() for _ in range(100)]
    for index in range(2000):
        rows = [StepWork.of_row(100 + index % 1000, 1) for _ in range(8)]
        trace.run(StepWork.total([StepWork(1), *rows]))
    assert trace.error(prompts) < 0.15


def test_prompts_whose_logprobs_are_told_leave_what_is_known_of_others() -> None:
    trace = Trace(SMALL)
    for _ in range(100):
        trace.run(trace.with_prompt())
    for _ in range(200):
        trace.run(trace.with_prompt(is_scored=True))
    assert trace.error([trace.with_prompt() for _ in range(100)]) < 0.15
    assert trace.error([trace.with_prompt(is_scored=True) for _ in range(100)]) < 0.15


@pytest.mark.parametrize("truth", [SMALL, SLOW], ids=["small", "slow"])
def test_a_busy_start_is_forgotten(truth: StepCosts) -> None:
    """What no step has had yet is known by the proportions of the default costs, which are about those of both."""
    trace = Trace(truth)
    rows = [StepWork.of_row(100, 1) for _ in range(8)]
    work = StepWork.total([StepWork(1), *rows])
    for index in range(100):
        trace.run(work, slower=10 if index < 40 else 1)
    assert trace.error([work]) < 0.15
    assert trace.error([trace.decoding() for _ in range(100)]) < 0.7
    for work in [trace.with_prompt() for _ in range(100)]:
        assert 0.2 < trace.model.costs.seconds(work) / trace.truth.seconds(work) < 5


def test_a_machine_that_becomes_slower_is_followed() -> None:
    trace = Trace(SMALL)
    for _ in range(200):
        trace.run(trace.any())
    trace.truth = StepCosts(*(4 * cost for cost in SMALL))
    for _ in range(300):
        trace.run(trace.any())
    assert trace.error([trace.any() for _ in range(100)]) < 0.25


def test_costs_are_never_negative() -> None:
    draw = random.Random(0)
    for _ in range(30):
        model = StepTime()
        for _ in range(60):
            amounts = [draw.choice([0, draw.randint(1, 1000)]) for _ in range(5)]
            model.note(StepWork(1, 1, *amounts), draw.choice([0.0, draw.expovariate(100)]))
            assert min(model.costs) >= 0 and model.costs.seconds(StepWork(1, 1)) < 100


def test_costs_are_told_when_they_have_changed() -> None:
    model = StepTime()
    assert model.take_costs() is None
    work = StepWork(1, 1, 0, 100)
    model.note(work, 2 * DEFAULT_COSTS.seconds(work))
    told = model.take_costs()
    assert told is not None and told.seconds(work) == pytest.approx(2 * DEFAULT_COSTS.seconds(work))
    model.note(work, told.seconds(work))
    assert model.take_costs() is None


def step(scheduler: Scheduler, seconds: float) -> StepWork:
    step = scheduler.schedule()
    scheduler.note_seconds(step, 0.0, seconds)
    scheduler.update(step, {row.request_id: RowResult(7 if row.is_sampled else None) for row in step.rows})
    return step.work


def test_a_step_tells_its_work() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=64)
    residency.register("a", 2)
    scheduler.add(make_request(0, [1] * 6, adapters=(("a", 1.0),), activation=4))
    assert step(scheduler, 0.01) == StepWork(1, 1, 5, 6, 15, 2, 2)
    assert step(scheduler, 0.01) == StepWork(1, 1, 0, 7, 0, 2, 1)


def test_a_step_tells_the_tokens_whose_logprobs_are_told() -> None:
    """The first token of a prompt has no logprob, and none is told of an answer here."""
    scheduler, *_ = make_scheduler(num_pages=64, max_num_batched_tokens=4)
    scheduler.add(make_request(0, [1] * 6, sampling=SamplingParams(prompt_logprobs=0)))
    assert [step(scheduler, 0.01).num_scored_tokens for _ in range(3)] == [4, 1, 0]


def test_a_step_without_a_token_is_measured_with_the_next() -> None:
    """A GPU computes it while the next step is planned."""
    scheduler, *_ = make_scheduler(num_pages=64, max_num_batched_tokens=8)
    scheduler.add(make_request(0, [1] * 16))
    noted: list[tuple[StepWork, float]] = []
    scheduler.step_time.note = lambda *step: noted.append(step)  # type: ignore[method-assign]
    works = [step(scheduler, seconds) for seconds in (0.25, 0.5, 0.125)]
    assert noted == [(StepWork.total(works[:2]), 0.75), (works[2], 0.125)]
