"""CopyBudget: the number of adapter pages that one step may copy without visibly slowing the rows that it computes.

Two limits apply: a fixed number of pages, and the number of pages whose copies take a fixed share of the measured time
of a step. The second limit applies only to steps that compute rows: no other request waits for a step that only copies.
"""

from .eviction import ReturnCosts

SHARE = 0.2  # of a step's own time; while adapters are copied, gaps between tokens grow by at most this share
STEP_MEMORY = 0.9  # fraction of the measured time that is kept when a longer step is measured


class CopyBudget:
    def __init__(self, max_pages: int, costs: ReturnCosts) -> None:
        self._max_pages = max(max_pages, 1)
        self._costs = costs
        self._step_seconds: float | None = None  # time of a step that computes rows, without its copies

    def note_step(self, num_rows: int, seconds: float) -> None:
        """Notes the time of a step without its copies. A shorter time counts at once, a longer one gradually, because
        one long prompt says nothing about the gaps after it."""
        if num_rows:
            before = seconds if self._step_seconds is None else self._step_seconds
            self._step_seconds = min(seconds, STEP_MEMORY * before + (1 - STEP_MEMORY) * seconds)

    def num_pages(self, has_rows: bool) -> int:
        """Returns at least 1, so that every adapter on its way arrives. has_rows: whether the step computes rows."""
        if not has_rows or self._step_seconds is None:
            return self._max_pages
        return max(1, min(self._max_pages, int(SHARE * self._step_seconds / self._costs.adapter)))
