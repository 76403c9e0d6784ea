"""EngineCore: runs the steps. Owns scheduler, runner, arena and adapter pool, and has them plan, execute and commit.

Synchronous and single-threaded. Knows no text, no name of an adapter, no process and no wire.
"""

import logging
import time
from collections.abc import Callable, Sequence
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
)

from ..errors import EngineBroken
from ..memory.arena import Arena
from ..outputs import AdapterState, EngineLoad
from ..parallel.shards import NO_SHARDS, Shards
from .runner import ModelRunner

logger = logging.getLogger(__name__)
STEP_FAILED = "the engine could not compute this request"


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
    ) -> None:
        self.arena = arena
        self.scheduler = scheduler
        self._residency = residency
        self._pool = pool
        self._runner = runner
        self._shards = shards
        self._now = now
        self._dropping: set[str] = set()  # adapters whose image is dropped once it is copied
        self._unloaded: list[str] = []  # adapters that are gone, not yet reported by `take_unloaded`

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
        step = self.scheduler.schedule(self._now())
        planned = self._now()
        self._runner.begin_copies(step)
        self._shards.copy(step)  # comes second: copies that fail in this shard are planned again
        results = self._execute(step)
        copying = self._runner.finish_copies()
        self.scheduler.note_seconds(step, copying, self._now() - planned - copying)
        updates = self.scheduler.update(step, results)
        self._drop_unused()
        return updates

    def _execute(self, step: Step) -> dict[int, RowResult]:
        """Returns a result for each row. If the step fails, its rows run again in halves until the guilty row is alone;
        they can, because nothing is committed yet."""
        if not step.rows:
            return {}
        try:
            return self._runner.execute(step)
        except EngineBroken:
            raise
        except Exception:
            if len(step.rows) == 1:
                logger.exception("request %d cannot be computed", step.rows[0].request_id)
                return {step.rows[0].request_id: RowResult(error=STEP_FAILED)}
        middle = len(step.rows) // 2
        return self._execute_part(step, step.rows[:middle]) | self._execute_part(step, step.rows[middle:])

    def _execute_part(self, step: Step, rows: Sequence[ScheduledRow]) -> dict[int, RowResult]:
        return self._execute(replace(step, copies=(), rows=rows))

    # Adapters.

    def load_adapter(self, table: ImageTable, image: Tensor) -> None:
        """Makes an adapter usable. image: [num_shards * num_pages, page_bytes] uint8, which is kept and never written
        to. The caller has already sent it to the other shards."""
        if table.num_shards != self._shards.size:
            raise ValueError(f"the image is packed for {table.num_shards} shards, and there are {self._shards.size}")
        self._pool.add(table.of_shard(0), image[: table.num_pages])
        self._residency.register(table.digest, table.num_pages)
        self._dropping.discard(table.digest)

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

    def take_residency_changes(self) -> dict[str, bool]:
        """Returns the result of AdapterResidency.take_changes."""
        return self._residency.take_changes()

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
