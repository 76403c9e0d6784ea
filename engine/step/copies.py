"""StepCopies: when the adapter copies of a step run, before its rows or beside them.

A copy that fails costs its adapter, and no other one.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from blora.adapters.device_pool import DevicePool
from blora.scheduler import PageCopy

from ..errors import EngineBroken

logger = logging.getLogger(__name__)


class CopiesFailed(RuntimeError):
    """Copies of these adapters have failed; the others have been made."""

    def __init__(self, digests: Sequence[str]) -> None:
        super().__init__(digests)
        self.digests = digests


class PagedRow(Protocol):
    @property
    def block_table(self) -> Sequence[int]: ...


class PagedStep(Protocol):
    """The facts about a step that its copies need: the scheduler's Step, or the ShardStep that a shard receives."""

    @property
    def copies(self) -> Sequence[PageCopy]: ...

    @property
    def rows(self) -> Sequence[PagedRow]: ...

    @property
    def adapter_pages(self) -> Mapping[str, Sequence[int]]: ...


class StepCopies(Protocol):
    is_beside: bool  # True if the rows of a step do not wait for its copies, and so may not use the copied pages

    def begin(self, step: PagedStep) -> None:
        """Begins the step's copies. Call it before anything of the step is computed. Raises CopiesFailed."""

    def go_on(self, is_waited_for: bool) -> None:
        """Goes on with the copies. Call it once the work of the step's rows is launched, before the host waits for it.
        is_waited_for: True if the host will wait for it, to read the rows' tokens."""

    def settle(self) -> None:
        """Waits until nothing of the failed rows runs any more. Call it after rows failed, before other rows of the
        step are computed. Raises EngineBroken if nothing can be computed at all."""

    def finish(self) -> float:
        """Completes all copies of the step. Call it after the step, even if it failed. Returns the seconds of host time
        that the copies took. Raises CopiesFailed for those that were not made in `begin`."""


class CopiesBefore:
    """Copies run before the rows, because both share the processor. The rows of a step can use its copied pages."""

    is_beside = False

    def __init__(self, pool: DevicePool) -> None:
        self._pool = pool
        self._seconds = 0.0

    def begin(self, step: PagedStep) -> None:
        self._seconds, failed = run_copies(self._pool, step.copies)
        if failed:
            raise CopiesFailed(failed)

    def go_on(self, is_waited_for: bool) -> None:
        pass

    def settle(self) -> None:
        pass

    def finish(self) -> float:
        return self._seconds


def run_copies(pool: DevicePool, copies: Sequence[PageCopy]) -> tuple[float, list[str]]:
    """Runs the copies; returns the seconds that they took, and the adapters whose copies failed. Raises
    EngineBroken."""
    started = time.monotonic()
    failed = []
    for copy in copies:
        try:
            pool.copy(copy.digest, copy.first, copy.page_ids)
        except EngineBroken:
            raise
        except Exception:
            logger.exception("adapter %s cannot be copied", copy.digest)
            failed.append(copy.digest)
    return time.monotonic() - started, failed
