"""EngineCore: runs the steps. Owns scheduler, runner, arena and adapter pool, and has them plan, execute and commit.

Synchronous and single-threaded. Knows no text, no name of an adapter, no process and no wire. A fault that a request or
an adapter has brought out costs that one. The logbook names the one that the core is at, for a fault that costs more.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from blora.adapters.device_pool import DevicePool
from blora.adapters.image import ImageTable
from blora.scheduler import (
    AdapterResidency,
    FinishReason,
    Request,
    RowResult,
    RowUpdate,
    ScheduledRow,
    Scheduler,
    Step,
    StepCosts,
    StepReport,
)

from ..errors import EngineBroken
from ..ipc.logbook import Activity, Logbook, private_logbook
from ..memory.arena import Arena
from ..outputs import AdapterState, EngineLoad
from ..parallel.shards import NO_SHARDS, Shards
from .copies import CopiesFailed
from .expectation import NO_EXPECTATION, Expectation
from .runner import ModelRunner

logger = logging.getLogger(__name__)
STEP_FAILED = "the engine could not compute this request"
MAX_FRUITLESS = 3  # steps in a row whose rows all raise errors: then no row is to blame, and the engine is broken


class EngineCore:
    def __init__(
        self,
        arena: Arena,
        scheduler: Scheduler,
        residency: AdapterResidency,
        pool: DevicePool,
        runner: ModelRunner,
        shards: Shards = NO_SHARDS,
        now: Callable[[], float] = time.monotonic,
        logbook: Logbook | None = None,
        expectation: Expectation = NO_EXPECTATION,
    ) -> None:
        """logbook: where the core notes what it is at; None for one that nobody reads."""
        self._expectation = expectation
        self.logbook = private_logbook(scheduler.limits.max_num_seqs) if logbook is None else logbook
        self.arena = arena
        self.scheduler = scheduler
        self._residency = residency
        self._pool = pool
        self._runner = runner
        self._shards = shards
        self._now = now
        self._report: StepReport | None = None  # of the last step, not yet taken
        self._dropping: set[str] = set()  # adapters whose image is dropped once it is copied
        self._unloaded: list[str] = []  # adapters that are gone, not yet reported by `take_unloaded`
        self._unpinned: list[str] = []  # adapters whose pins have ended by faults, not yet reported
        self._num_raised = 0  # rows of the present step over which errors were raised
        self._num_fruitless = 0  # steps in a row whose rows all raised errors
        self.is_failing = False  # errors have come that no row is to blame for; the rows are told of them all the same
        pool.before_copy = lambda digest: self.logbook.note(Activity.COPYING, digest=digest)

    # Requests.

    def add_request(self, request: Request) -> None:
        """Accepts a validated request whose adapters are loaded."""
        self.scheduler.add(request)

    def finish(self, request_id: int) -> None:
        """Ends a request in any phase. An unknown or finished request is ignored."""
        self.scheduler.finish(request_id, FinishReason.ABORT)
        self._drop_unused()

    def reset_prefix_cache(self, also_running: bool) -> bool:
        """Returns the result of Scheduler.reset_prefix_cache."""
        return self.scheduler.reset_prefix_cache(also_running)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def step(self) -> list[RowUpdate]:
        """Plans, executes and commits one step; returns the updates of its rows. A row that cannot be computed ends
        only its own request."""
        began = self._now()
        with self._at(Activity.PLANNING):
            step = self.scheduler.schedule(began)
        planned = self._now()
        step, failed = self._begin_copies(step)
        self._shards.copy(step)  # comes second: copies that fail in this shard are left out
        self._num_raised = 0
        results = self._execute(step)
        copying, step = self._finish_copies(step, failed)
        self.scheduler.note_seconds(step, copying, self._now() - planned - copying)
        self.is_failing = self._is_fruitless(step)
        self._unpinned += [digest for digest in failed if self.scheduler.fail_copies(digest)]
        self._report = self.scheduler.report(step, self._now() - began) if step.rows else None
        with self._at(Activity.COMMITTING):
            updates = self.scheduler.update(step, results)
        self._drop_unused()
        return updates

    @contextmanager
    def _at(self, activity: Activity) -> Iterator[None]:
        """While the scheduler works. An error in there costs more than a request, but the logbook names the one whose
        turn it was."""
        self.logbook.note(activity)
        try:
            yield
        except Exception:
            if self.scheduler.in_hand is not None:
                self.logbook.note(activity, [self.scheduler.in_hand.request_id])
            raise

    def _begin_copies(self, step: Step) -> tuple[Step, list[str]]:
        """Returns the step without the copies that failed and the rows that need them, and their adapters."""
        try:
            self._runner.begin_copies(step)
        except CopiesFailed as error:
            rows = [row for row in step.rows if not {digest for digest, _ in row.adapters} & {*error.digests}]
            return replace(_without_copies(step, error.digests), rows=rows), list(error.digests)
        return step, []

    def _finish_copies(self, step: Step, failed: list[str]) -> tuple[float, Step]:
        """Returns the seconds of the step's copies, and the step without those that have failed; adds these."""
        try:
            return self._runner.finish_copies(), step
        except CopiesFailed as error:
            failed += error.digests
            return 0.0, _without_copies(step, error.digests)

    def _is_fruitless(self, step: Step) -> bool:
        """Whether all rows have raised errors, and had no adapter in common; or those of several steps in a row."""
        if not step.rows:
            return False
        if self._num_raised < len(step.rows):
            self._num_fruitless = 0
            return False
        self._num_fruitless += 1
        first, *others = ({digest for digest, _ in row.adapters} for row in step.rows)
        return self._num_fruitless >= MAX_FRUITLESS or (bool(others) and not first.intersection(*others))

    def _note_rows(self, step: Step) -> None:
        expected = self._expectation.seconds(step, self.scheduler.step_time)
        self.logbook.note(Activity.EXECUTING, [row.request_id for row in step.rows], expected=expected)

    def _execute(self, step: Step) -> dict[int, RowResult]:
        """Returns a result for each row. If the step fails, its rows run again in halves until the guilty row is alone;
        they can, because nothing is committed yet."""
        if not step.rows:
            return {}
        self._note_rows(step)
        try:
            return self._runner.execute(step)
        except EngineBroken:
            self._note_rows(step)  # copies may have run beside them
            raise
        except Exception:
            if len(step.rows) == 1:
                self._num_raised += 1
                logger.exception("request %d cannot be computed", step.rows[0].request_id)
                return {step.rows[0].request_id: RowResult(error=STEP_FAILED)}
        middle = len(step.rows) // 2
        return self._execute_part(step, step.rows[:middle]) | self._execute_part(step, step.rows[middle:])

    def _execute_part(self, step: Step, rows: Sequence[ScheduledRow]) -> dict[int, RowResult]:
        return self._execute(replace(step, copies=(), rows=rows))

    # Adapters.

    def load_adapter(self, table: ImageTable, image: Tensor) -> None:
        """Makes an adapter usable. image: [num_shards * num_pages, page_bytes] uint8, which is kept and never written
        to. The caller has already sent it to the other shards, and calls `refuse_adapter` if an error is raised."""
        if table.num_shards != self._shards.size:
            raise ValueError(f"the image is packed for {table.num_shards} shards, and there are {self._shards.size}")
        self._pool.add(table.of_shard(0), image[: table.num_pages])
        self._residency.register(table.digest, table.num_pages)
        self._dropping.discard(table.digest)

    def refuse_adapter(self, digest: str) -> None:
        """Forgets, here and in the other shards, what is left of an adapter that could not be loaded. One that was
        loaded before stays."""
        if not self._residency.is_known(digest):
            self.unload_adapter(digest)

    def drop_image(self, digest: str) -> None:
        """Drops an adapter's image, after the copy of it that may be under way. A resident adapter stays resident. No
        request may use the adapter until it is loaded again."""
        self._dropping.add(digest)
        self._drop_unused()

    def unload_adapter(self, digest: str) -> None:
        """Unloads an adapter. Returns at once; the adapter goes when the last unfinished request that uses it ends."""
        self._residency.unregister(digest)
        self._drop_unused()

    def _drop_unused(self) -> None:
        """Frees unloaded adapters whose last request has ended, and images marked to be dropped."""
        for digest in self._residency.take_gone():
            self._pool.remove(digest)
            self._shards.forget_adapter(digest)
            self._unloaded.append(digest)
        for digest in [digest for digest in self._dropping if not self._residency.is_being_copied(digest)]:
            self._dropping.remove(digest)
            self._pool.drop_image(digest)
            self._shards.drop_image(digest)

    def images(self) -> set[str]:
        """Returns the adapters whose image is kept: neither gone nor marked to be dropped."""
        return self._pool.images() - self._dropping

    def take_unloaded(self) -> list[str]:
        """Returns the adapters that have gone since the last call."""
        gone, self._unloaded = self._unloaded, []
        return gone

    def take_unpinned(self) -> list[str]:
        """Returns the adapters whose pins have ended, since the last call, because they could not be copied."""
        unpinned, self._unpinned = self._unpinned, []
        return unpinned

    def take_residency_changes(self) -> dict[str, bool]:
        """Returns the result of AdapterResidency.take_changes."""
        return self._residency.take_changes()

    def take_step_report(self) -> StepReport | None:
        """Returns what is to be told of the last step, once."""
        report, self._report = self._report, None
        return report

    def take_step_costs(self) -> StepCosts | None:
        """Returns the result of StepTime.take_costs."""
        return self.scheduler.step_time.take_costs()

    def pin_adapter(self, digest: str) -> bool:
        """Makes an adapter resident for good. Returns False if there is no room for it beside the accepted requests."""
        return self.scheduler.pin(digest)

    def warm_adapter(self, digest: str) -> bool:
        """Has the next steps make an adapter resident. Returns False if there is no room for it now."""
        return self._residency.warm(digest)

    def unpin_adapter(self, digest: str) -> None:
        self._residency.unpin(digest)

    def adapter_state(self, digest: str) -> AdapterState:
        residency = self._residency
        copied = residency.copy_counts(digest)
        return AdapterState(
            is_resident=residency.is_resident(digest),
            is_pinned=residency.is_pinned(digest),
            num_requests=residency.num_requests(digest),
            num_copies=copied.num_copies,
            num_copied_pages=copied.num_pages,
            copy_seconds=copied.seconds,
        )

    @property
    def num_free_pages(self) -> int:
        """The number of pages not in use: empty ones, and those of cached KV and idle adapters."""
        return self.scheduler.num_free_pages

    @property
    def load(self) -> EngineLoad:
        scheduler = self.scheduler
        return EngineLoad(
            self.num_free_pages,
            scheduler.num_running,
            scheduler.num_waiting,
            scheduler.counts,
            scheduler.step_time.costs,
        )

    def check_integrity(self) -> None:
        """Raises RuntimeError if a page, a table or a reference has no owner or several, or if an adapter that may have
        to be copied has no image."""
        self.scheduler.check_integrity()
        lost = [digest for digest in self._residency.to_be_copied() if digest not in self._pool]
        if lost:
            raise RuntimeError(f"adapters {lost} are in use, but their images are gone")

    def check_idle(self) -> None:
        """Raises RuntimeError if a request is left, or if anything holds a page except pinned adapters and adapters
        still being copied, ahead for requests that have ended."""
        num_held, num_kept = self.scheduler.num_pages - self.num_free_pages, self._residency.num_kept_pages
        num_unfinished = self.scheduler.num_running + self.scheduler.num_waiting
        if num_unfinished or num_held != num_kept:
            raise RuntimeError(f"idle, but {num_unfinished} requests are left, {num_held} pages held, {num_kept} kept")


def _without_copies(step: Step, digests: Collection[str]) -> Step:
    return replace(step, copies=[copy for copy in step.copies if copy.digest not in digests])
