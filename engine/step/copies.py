"""StepCopies: when a step's adapter copies run, before its rows or beside them."""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from blora.adapters.device_pool import DevicePool
from blora.scheduler import PageCopy


class PagedRow(Protocol):
    @property
    def block_table(self) -> Sequence[int]: ...


class PagedStep(Protocol):
    """What copies have to know of a step, the scheduler's or as a shard is told of it."""

    @property
    def copies(self) -> Sequence[PageCopy]: ...

    @property
    def rows(self) -> Sequence[PagedRow]: ...

    @property
    def adapter_pages(self) -> Mapping[str, Sequence[int]]: ...


class StepCopies(Protocol):
    is_beside: bool  # the rows of a step do not wait for its copies, and may not use what these bring

    def begin(self, step: PagedStep) -> None:
        """Comes before anything of the step is computed."""

    def go_on(self, is_waited_for: bool) -> None:
        """What the step's rows need is launched, and nobody has waited for it yet. is_waited_for: somebody will, who
        reads the rows' tokens."""

    def settle(self) -> None:
        """Comes after rows that failed and before others of the step are computed: nothing of the failed ones runs any
        more. Raises EngineBroken where nothing can be computed at all."""

    def finish(self) -> float:
        """Comes after the step, even if it failed: no copy is left out. Returns the seconds of the host that the step's
        copies took."""


class CopiesBefore:
    """Where copying and computing share the processor: what is copied in a step can be used in it."""

    is_beside = False

    def __init__(self, pool: DevicePool) -> None:
        self._pool = pool
        self._seconds = 0.0

    def begin(self, step: PagedStep) -> None:
        self._seconds = run_copies(self._pool, step.copies)

    def go_on(self, is_waited_for: bool) -> None:
        pass

    def settle(self) -> None:
        pass

    def finish(self) -> float:
        return self._seconds


def run_copies(pool: DevicePool, copies: Sequence[PageCopy]) -> float:
    """Returns the seconds that it took."""
    started = time.monotonic()
    for copy in copies:
        pool.copy(copy.digest, copy.first, copy.page_ids)
    return time.monotonic() - started
