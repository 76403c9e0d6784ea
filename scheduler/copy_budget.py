"""CopyBudget: the number of adapter pages that one step may copy without visibly slowing the rows that it computes.

Two limits apply: a fixed number of pages, and the number of pages whose copies take a fixed share of the time that the
step's rows are predicted to take. The second limit applies only to steps that compute rows: no other request waits for
a step that only copies.
"""

from .eviction import ReturnCosts

SHARE = 0.2  # of a step's own time; while adapters are copied, gaps between tokens grow by at most this share


class CopyBudget:
    def __init__(self, max_pages: int, costs: ReturnCosts) -> None:
        self._max_pages = max(max_pages, 1)
        self._costs = costs

    def num_pages(self, step_seconds: float | None) -> int:
        """Returns at least 1, so that every adapter on its way arrives. step_seconds: predicted for the step's rows;
        None if it computes none."""
        if step_seconds is None:
            return self._max_pages
        return max(1, min(self._max_pages, int(SHARE * step_seconds / self._costs.adapter)))
