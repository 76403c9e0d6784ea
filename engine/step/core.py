"""EngineCore: the step. Owns scheduler, runner, arena and adapter pool, and lets them do plan -> execute -> commit.

Synchronous and single-threaded; knows no text, no name of an adapter, no process and no wire.
"""

import logging
import time
from collections.abc import Sequence
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
)

from ..errors import EngineBroken
from ..memory.arena import Arena
from ..outputs import AdapterState
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
    ) -> None:
        self.arena = arena
        self.scheduler = scheduler
        self._residency = residency
        self._pool = pool
        self._runner = runner
        self._shards = shards
        self._leaving: set[str] = set()  # unloaded adapters that unfinished requests still use
        self._dropping: set[str] = set()  # adapters whose image goes once it is copied
        self._unloaded: list[str] = []  # adapters that are gone, not yet told

    # Requests.

    def add_request(self, request: Request) -> None:
        """Accepts a validated request whose adapters are loaded."""
        self.scheduler.add(request)

    def finish(self, request_id: int) -> None:
        """Ends a request at any phase; an unknown or finished one is fine."""
        self.scheduler.finish(request_id, FinishReason.ABORT)
        self._drop_unused()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def step(self) -> list[RowUpdate]:
        """Plans, executes and commits one step. A row that cannot be computed ends its own request only."""
        step = self.scheduler.schedule(time.monotonic())
        planned = time.monotonic()
        self._runner.begin_copies(step)
        self._shards.copy(step)  # not if they fail here, which plans them again
        results = self._execute(step)
        copying = self._runner.finish_copies()
        self.scheduler.note_seconds(step, copying, time.monotonic() - planned - copying)
        updates = self.scheduler.update(step, results)
        self._drop_unused()
        return updates

    def _execute(self, step: Step) -> dict[int, RowResult]:
        """Nothing is committed yet, so the rows of a step that fails are run again in halves until the guilty one is
        alone."""
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
        """Makes an adapter usable. image: [num_shards * num_pages, page_bytes] uint8, kept and never written to; shards
        beside this one have been given it."""
        if table.num_shards != self._shards.size:
            raise ValueError(f"an image for {table.num_shards} shards, of which there are {self._shards.size}")
        self._pool.add(table.of_shard(0), image[: table.num_pages])
        self._residency.register(table.digest, table.num_pages)
        self._leaving.discard(table.digest)
        self._dropping.discard(table.digest)

    def drop_image(self, digest: str) -> None:
        """Lets go of an adapter's images, once they are copied if they are being copied. No request may use it until
        it is loaded again; resident it stays."""
        self._dropping.add(digest)
        self._drop_unused()

    def unload_adapter(self, digest: str) -> None:
        """Refuses nothing and waits for nothing: the adapter goes with the last unfinished request that uses it."""
        self._residency.unregister(digest)
        self._leaving.add(digest)
        self._drop_unused()

    def _drop_unused(self) -> None:
        """Frees what unloaded adapters whose last request has ended had, and images that were to be dropped."""
        for digest in [digest for digest in self._leaving if not self._residency.is_known(digest)]:
            self._leaving.remove(digest)
            self._pool.remove(digest)
            self._shards.forget_adapter(digest)
            self._unloaded.append(digest)
        for digest in [digest for digest in self._dropping if not self._residency.is_being_copied(digest)]:
            self._dropping.remove(digest)
            self._pool.drop_image(digest)
            self._shards.drop_image(digest)

    def images(self) -> set[str]:
        """The adapters whose image is kept: not unloaded, nor to be dropped."""
        return self._pool.images() - self._dropping

    def take_unloaded(self) -> list[str]:
        """The adapters that are gone since the last call."""
        gone, self._unloaded = self._unloaded, []
        return gone

    def take_residency_changes(self) -> dict[str, bool]:
        """See AdapterResidency.take_changes."""
        return self._residency.take_changes()

    def pin_adapter(self, digest: str) -> bool:
        """Makes an adapter resident for good; False when there is no room for it beside what was accepted."""
        return self.scheduler.pin(digest)

    def warm_adapter(self, digest: str) -> bool:
        """Starts to make an adapter resident, which the next steps do; False when there is no room for it now."""
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
        """Pages that hold nothing in use: empty ones, cached KV and idle adapters."""
        return self.scheduler.num_free_pages

    def check_integrity(self) -> None:
        """Raises RuntimeError when a page, a table or a reference has no owner, or more than one, or when an adapter
        that may have to be copied has no image."""
        self.scheduler.check_integrity()
        lost = [digest for digest in self._residency.to_be_copied() if digest not in self._pool]
        if lost:
            raise RuntimeError(f"adapters {lost} are used, and their images are gone")

    def check_idle(self) -> None:
        """Raises RuntimeError unless no request is left, and nothing holds a page but adapters that are pinned or still
        on their way, copied ahead for requests that have ended."""
        num_held, num_kept = self.scheduler.num_pages - self.num_free_pages, self._residency.num_kept_pages
        num_unfinished = self.scheduler.num_running + self.scheduler.num_waiting
        if num_unfinished or num_held != num_kept:
            raise RuntimeError(f"idle, but {num_unfinished} requests are left, {num_held} pages held, {num_kept} kept")
