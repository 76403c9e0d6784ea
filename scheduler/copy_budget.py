"""CopyBudget: how many adapter pages one step may copy, so that rows which decode beside it hardly notice.

Two limits: a number of pages, and the pages whose copies take a share of what a step takes, as measured. The second
counts only where rows are computed in the same step: nobody else waits for one that copies and computes nothing.
"""

from .eviction import ReturnCosts

SHARE = 0.2  # of a step's own time: gaps between tokens grow by no more while adapters are copied
STEP_MEMORY = 0.9  # of the measured time of a step, how much stays when a longer one is taken


class CopyBudget:
    def __init__(self, max_pages: int, costs: ReturnCosts) -> None:
        self._max_pages = max(max_pages, 1)
        self._costs = costs
        self._step_seconds: float | None = None  # of steps that compute rows, without their copies

    def note_step(self, num_rows: int, seconds: float) -> None:
        """A step took so long without its copies. A shorter one counts at once, a longer one by and by: one long prompt
        says nothing about the gaps after it."""
        if num_rows:
            before = seconds if self._step_seconds is None else self._step_seconds
            self._step_seconds = min(seconds, STEP_MEMORY * before + (1 - STEP_MEMORY) * seconds)

    def num_pages(self, has_rows: bool) -> int:
        """At least 1: an adapter on its way arrives. has_rows: whether the step computes anything."""
        if not has_rows or self._step_seconds is None:
            return self._max_pages
        return max(1, min(self._max_pages, int(SHARE * self._step_seconds / self._costs.adapter)))
