"""Pace: how long a step may take in which rows decode. Prompts fill it up to that, and no further.

A stream's next token waits for the whole step. Without a target, a step with decoding rows may take SLOWDOWN times as
long as these rows alone. `target_itl` sets the limit outright. It then limits how many requests run at once, too, where
so many rows would take longer even without a prompt. A step without decoding rows has no limit.
"""

from collections.abc import Callable, Iterable, Sequence

from .request import AdapterUse, Request
from .step_time import StepTime, StepWork

SLOWDOWN = 2.0
NumPages = Callable[[Iterable[AdapterUse]], int]  # counts the pages of all distinct adapters of a list


class Pace:
    def __init__(
        self, step_time: StepTime, least_chunk: int, is_timed: bool = True, target_itl: float | None = None
    ) -> None:
        """least_chunk: tokens of a prompt that a step computes however long they take. is_timed: False leaves all steps
        without a limit. target_itl: seconds from one token of a request to the next."""
        self.least_chunk = least_chunk
        self.is_timed = is_timed
        self._step_time = step_time
        self._target_itl = target_itl

    def seconds(self, work: StepWork) -> float:
        return self._step_time.costs.seconds(work)

    @property
    def least_seconds(self) -> float:
        """The time of a least chunk at the start of a prompt."""
        return self.seconds(StepWork.of_row(0, self.least_chunk))

    def limit(self, decoding: StepWork) -> float:
        """Returns the seconds that a step may take. decoding: the work of its rows that decode."""
        return SLOWDOWN * self.seconds(decoding) if self._target_itl is None else self._target_itl

    def has_seat(self, running: Sequence[Request], request: Request, num_pages: NumPages) -> bool:
        """Whether a request may run beside others."""
        if self._target_itl is None or not running:
            return True
        requests = [*running, request]
        rows = [StepWork.of_row(other.num_tokens, 1, len(other.adapters)) for other in requests]
        shared = StepWork(1, num_adapter_pages=num_pages(use for other in requests for use in other.adapters))
        return self.seconds(StepWork.total([shared, *rows])) <= self._target_itl
