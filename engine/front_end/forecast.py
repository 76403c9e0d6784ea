"""Forecast: predicts how long a new request would wait and take, from what the engine's steps were. Knows no request.

Prompts that wait get a part of each step, their *chunk*, which is measured where a step left some of them. Where steps
leave none and requests wait all the same, seats are missing (or memory, which is the same here), and a seat becomes
free when an answer ends. A prediction is never exact: see caution.py.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from blora.scheduler import DEFAULT_COSTS, StepCosts, StepReport, StepWork

from .backlog import Load

NUM_FIRST_STEPS = 8  # before so many steps nothing is predicted: the first ones touch memory for the first time
STEP_MEMORY = 0.9  # weight of a mean over steps that is kept when another step follows
ANSWER_MEMORY = 0.97  # the same for a mean over requests
SEAT_GROWTH = 0.1  # seats that are expected back with each step that keeps nobody waiting
MIN_SECONDS = 1e-9  # of a step: the costs may be found to be all in contexts and adapters


class Prediction(NamedTuple):
    """Seconds, without caution."""

    wait: float  # until the request's own prompt is computed
    prompt: float  # from then to its first token
    token: float  # of each later token


@dataclass(slots=True)
class _Mean:
    """An exponentially weighted mean."""

    memory: float
    value: float | None = None

    def note(self, value: float) -> None:
        self.value = value if self.value is None else self.memory * self.value + (1 - self.memory) * value


class Forecast:
    def __init__(self, num_seats: int) -> None:
        """num_seats: requests that run at once, at most."""
        self.costs: StepCosts = DEFAULT_COSTS
        self._num_seats = num_seats
        self._seats = float(num_seats)  # that there is memory for
        self._num_steps = 0
        self._last_seconds = 0.0  # of the last step
        self._decoding = _Mean(STEP_MEMORY)  # seconds of steps with rows that decode
        self._rows = _Mean(STEP_MEMORY)  # number of those rows
        self._chunk = _Mean(STEP_MEMORY)  # predicted seconds of the prompts in a step that left some of them
        self._answer = _Mean(ANSWER_MEMORY)  # tokens of an answer
        self._computed = _Mean(ANSWER_MEMORY)  # share of a prompt's tokens that the prefix cache does not have

    # What has been.

    def note_step(self, step: StepReport) -> None:
        self._num_steps += 1
        self._last_seconds = step.seconds
        if step.num_decoding_rows:
            self._decoding.note(step.seconds)
            self._rows.note(step.num_decoding_rows)
        if step.is_cut and step.prompt_seconds:
            self._chunk.note(step.prompt_seconds)
        if step.num_waiting and not step.is_cut:
            self._seats = STEP_MEMORY * self._seats + (1 - STEP_MEMORY) * step.num_running
        elif not step.num_waiting:
            self._seats = min(max(self._seats + SEAT_GROWTH, step.num_running), self._num_seats)

    def note_prompt(self, num_tokens: int, num_cached_tokens: int) -> None:
        self._computed.note(1 - num_cached_tokens / max(num_tokens, 1))

    def note_answer(self, num_tokens: int) -> None:
        self._answer.note(num_tokens)

    # What will be.

    @property
    def is_measured(self) -> bool:
        return self._num_steps >= NUM_FIRST_STEPS

    def num_answer_tokens(self, at_least: int, at_most: int) -> float:
        """Predicts the length of an answer; until one has ended, half of its limit."""
        expected = at_most / 2 if self._answer.value is None else self._answer.value
        return min(max(expected, at_least), at_most)

    def predict(self, own: Load, ahead: Load, num_decoding: float) -> Prediction:
        """own: of a new request. ahead: what is served before it. num_decoding: rows that decode now."""
        num_rows = num_decoding + ahead.num_rows + own.num_rows
        token = self._token_seconds(num_rows)
        prompt = self.prompt_seconds(own, num_decoding)
        prompts = self.prompt_seconds(ahead.plus(own), num_decoding)
        seats = max(num_rows - self._seats, 0) / max(self._seats, 1) * (self._answer.value or 0) * token
        return Prediction(self._last_seconds / 2 + max(prompts - prompt, seats), prompt, token)

    def prompt_seconds(self, load: Load, num_decoding: float) -> float:
        """Predicts the time until the prompts of a load are computed, beside rows that decode."""
        share = 1.0 if self._computed.value is None else self._computed.value
        costs, num_scored = self.costs, load.num_scored_tokens
        num_tokens = share * (load.num_prompt_tokens - num_scored) + num_scored  # no scored token is found in the cache
        seconds = num_tokens * costs.token_seconds + share * load.num_pairs * costs.pair_seconds
        seconds += num_scored * costs.scored_token_seconds
        num_steps = 1 if self._chunk.value is None else max(math.ceil(seconds / self._chunk.value), 1)
        return seconds + num_steps * self._rows_seconds(num_decoding)

    def _token_seconds(self, num_rows: float) -> float:
        """Predicts the time from token to token with so many rows, from what it is with those that decode now."""
        alone = self._rows_seconds(num_rows)
        if self._decoding.value is None or self._rows.value is None:
            return alone
        now = self._rows_seconds(self._rows.value)  # 0 where a fit gave all of a step's time to other parts
        return max(alone, self._decoding.value * (alone / now if now else 1.0))

    def _rows_seconds(self, num_rows: float) -> float:
        """Predicts the time of a step with so many rows that decode."""
        work = StepWork(num_steps=1, num_rows=max(1, round(min(num_rows, self._seats))))
        return max(self.costs.seconds(work), MIN_SECONDS)
