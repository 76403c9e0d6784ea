"""StepPlan: the rows of a step while it is being planned, and what is left of its budget of tokens and seconds."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import inf

from .pace import NumPages, Pace
from .request import AdapterUse, Request
from .step import Limits, ScheduledRow
from .step_time import StepWork


class StepPlan:
    def __init__(self, limits: Limits, pace: Pace, now: float, num_pages: NumPages, alone: Request | None) -> None:
        """alone: the request that the step belongs to; None if those share it that are not alone."""
        self.now = now  # seconds
        self.num_left = limits.max_num_batched_tokens  # tokens
        self.rows: dict[int, ScheduledRow] = {}
        self._seconds_left = inf  # of the time that decoding rows leave to prompts
        self._has_prompt = False
        self._is_cut = False  # a prompt got fewer tokens than it misses
        self._pace = pace
        self._num_pages = num_pages
        self._alone = alone

    def admits(self, request: Request) -> bool:
        """Whether the step may compute a request."""
        return not request.num_alone if self._alone is None else request is self._alone

    @property
    def is_alone(self) -> bool:
        return self._alone is not None

    def limit_prompts(self) -> None:
        """Limits the time of the prompts that follow by the rows so far. Call it when the rows that decode are in."""
        rows = list(self.rows.values())
        decoding = [row for row in rows if row.num_new_tokens == 1 and row.num_output_tokens]
        self._has_prompt = any(row.num_new_tokens > 1 for row in rows)
        self._seconds_left = inf
        if decoding and self._pace.is_timed:
            self._seconds_left = self._pace.limit(self._work_of(decoding)) - self._pace.seconds(self.work)

    @property
    def has_room(self) -> bool:
        """Whether the step can compute more prompts than those that are running."""
        return self.num_left > 0 and not self._is_cut and self._has_time

    @property
    def _has_time(self) -> bool:
        return not self._has_prompt or self._pace.least_seconds <= self._seconds_left

    def num_new_tokens(self, request: Request) -> int:
        """Returns how many of a request's missing tokens the step has room for. The first prompt of a step has a least
        chunk at any rate, so that prompts get on however slow the steps are. For others, less than that is not worth a
        row, unless nothing else is missing."""
        num_tokens = self._num_fitting(request)
        self._is_cut |= num_tokens < request.num_missing_tokens
        return num_tokens

    def _num_fitting(self, request: Request) -> int:
        most = min(request.num_missing_tokens, self.num_left)
        if most <= 1 or self._seconds_left == inf:
            return most
        if not self._has_time:
            return 0
        least = min(self._pace.least_chunk, most)
        num_fitting = bisect_right(range(1, most + 1), self._seconds_left, key=self._seconds_of_chunk(request))
        if num_fitting < least:
            return 0 if self._has_prompt else least
        return num_fitting

    def _seconds_of_chunk(self, request: Request) -> Callable[[int], float]:
        """Returns the function that predicts the time of so many further tokens of a request."""
        num_pages, start = self._num_new_pages(request.adapters), request.num_computed_tokens
        is_scored = request.sampling.prompt_logprobs is not None

        def seconds(num_tokens: int) -> float:
            num_adapted, num_scored = num_tokens * len(request.adapters), num_tokens if is_scored else 0
            row = StepWork.of_row(start, num_tokens, num_adapted, num_scored)
            return self._pace.seconds(row._replace(num_adapter_pages=num_pages))

        return seconds

    # Rows.

    def add(self, request: Request, num_new_tokens: int, block_table: Sequence[int]) -> None:
        if self._seconds_left < inf:
            self._seconds_left -= self._seconds_of_chunk(request)(num_new_tokens)
        self._has_prompt |= num_new_tokens > 1
        self.num_left -= num_new_tokens
        self.rows[request.request_id] = ScheduledRow(
            request_id=request.request_id,
            start=request.num_computed_tokens,
            num_new_tokens=num_new_tokens,
            token_ids=request.token_ids,
            num_prompt_tokens=request.num_prompt_tokens,
            block_table=block_table,
            adapters=request.adapters,
            activation=request.activation,
            sampling=request.sampling,
            seed=request.seed,
            sample_index=request.sample_index,
            stop_token_ids=request.all_stop_token_ids,
            bad_words=request.bad_words,
            edits=request.edits,
            matcher=request.matcher,
        )

    def drop(self, request: Request) -> None:
        row = self.rows.pop(request.request_id, None)
        if row is not None:
            self.num_left += row.num_new_tokens
            self.limit_prompts()

    @property
    def digests(self) -> set[str]:
        return {digest for row in self.rows.values() for digest, _ in row.adapters}

    @property
    def work(self) -> StepWork:
        return self._work_of(list(self.rows.values()))

    def _work_of(self, rows: Sequence[ScheduledRow]) -> StepWork:
        num_pages = self._num_pages(use for row in rows for use in row.adapters)
        return StepWork.total([StepWork(1, num_adapter_pages=num_pages), *(row.work for row in rows)])

    def _num_new_pages(self, adapters: Sequence[AdapterUse]) -> int:
        """Returns the pages of the adapters that no row uses yet."""
        digests = self.digests if adapters else set()
        return self._num_pages(use for use in adapters if use[0] not in digests)
