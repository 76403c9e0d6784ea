"""A request that another scheduler has begun goes on with the same tokens, and is neither told nor charged twice."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes import CheckingRunner, make_request, make_scheduler

from blora.scheduler import History, Request, RowUpdate, SamplingParams
from blora.scheduler.waiting_queue import WaitingQueue

SCORED = SamplingParams(temperature=0, prompt_logprobs=0)
REQUESTS: list[dict[str, Any]] = [
    {"prompt": [1, 2, 3], "max_tokens": 9},
    {"prompt": list(range(30)), "max_tokens": 6, "sampling": SCORED},
    {"prompt": list(range(30)), "max_tokens": 5, "leader": 1},
    {"prompt": [7] * 11, "max_tokens": 7, "adapters": (("digest", 2.0),), "activation": 6},
]


@dataclass
class Told:
    """What a user was told of a request."""

    token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[object] = field(default_factory=list)
    last: RowUpdate | None = None

    def add(self, update: RowUpdate) -> None:
        self.token_ids += update.token_ids
        self.prompt_logprobs += update.prompt_logprobs
        self.last = update

    @property
    def is_finished(self) -> bool:
        return self.last is not None and self.last.finish_reason is not None

    @property
    def history(self) -> History | None:
        last = self.last
        if last is None:
            return None
        counts = (last.num_cached_tokens, last.num_preemptions, last.scheduled_ts)
        return History(self.token_ids, len(self.prompt_logprobs), *counts)


class Engine:
    """A scheduler that gets the unfinished requests, and a runner that checks what it reads."""

    def __init__(self, told: dict[int, Told]) -> None:
        self.scheduler, residency, _ = make_scheduler(num_pages=64)
        residency.register("digest", 1)
        self._told, self._runner = told, CheckingRunner(4)
        for request_id, fields in enumerate(REQUESTS):
            if not told[request_id].is_finished:
                self._add(make_request(request_id, **fields), told[request_id].history)

    def _add(self, request: Request, history: History | None) -> None:
        if history is not None:
            request.resume(history)
        self.scheduler.add(request)

    def step(self) -> None:
        step = self.scheduler.schedule(now=self._runner.num_steps + 1.0)
        self._runner.begin_copies(step)
        for update in self.scheduler.update(step, self._runner.execute(step)):
            self._told[update.request_id].add(update)
        self.scheduler.check_integrity()

    def run(self, num_steps: int | None = None) -> int:
        """Returns the number of steps."""
        num_done = 0
        while self.scheduler.has_work and num_done != num_steps:
            self.step()
            num_done += 1
        return num_done


def all_told() -> dict[int, Told]:
    return {request_id: Told() for request_id in range(len(REQUESTS))}


@pytest.fixture
def undisturbed() -> tuple[dict[int, Told], int]:
    told = all_told()
    return told, Engine(told).run()


def test_it_goes_on_from_every_step(undisturbed: tuple[dict[int, Told], int]) -> None:
    expected, num_steps = undisturbed
    for last_step in range(num_steps):
        told = all_told()
        Engine(told).run(last_step)
        kept = {request_id: entry.history for request_id, entry in told.items()}
        Engine(told).run()
        for request_id, entry in told.items():
            assert entry.token_ids == expected[request_id].token_ids
            assert entry.prompt_logprobs == expected[request_id].prompt_logprobs
            history = kept[request_id]
            if history is not None and entry.last is not None:
                assert entry.last.num_cached_tokens == history.num_cached_tokens
                assert entry.last.scheduled_ts == history.scheduled_ts


def test_a_death_after_each_token_changes_no_token(undisturbed: tuple[dict[int, Told], int]) -> None:
    told = all_told()
    while not all(entry.is_finished for entry in told.values()):
        num_before = sum(len(entry.token_ids) for entry in told.values())
        engine = Engine(told)
        while sum(len(entry.token_ids) for entry in told.values()) == num_before:
            engine.step()
    assert {key: entry.token_ids for key, entry in told.items()} == {
        key: entry.token_ids for key, entry in undisturbed[0].items()
    }


def test_what_was_paid_is_not_charged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    charged: dict[int, list[int]] = {}

    def note(_: WaitingQueue, request: Request, num_tokens: int) -> None:
        charged.setdefault(request.request_id, []).append(num_tokens)

    monkeypatch.setattr(WaitingQueue, "charge_input", note)
    told = all_told()
    Engine(told).run(1)  # 16 tokens: the first prompt, and a part of the second
    assert [bool(entry.token_ids) for entry in told.values()] == [True, False, False, False]
    assert told[1].prompt_logprobs
    charged.clear()
    Engine(told).run()
    assert charged.keys() == {2, 3}  # the first two were admitted before
