"""Driver: sends the requests of a plan at their times, whatever has become of those before."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from .counts import Counts
from .plan import Planned
from .record import Record

LEAD_SECONDS = 0.1  # from the start of a run to second 0 of its plan, so that the first request is not late
CANCELLED = "CANCELLED"

Clock = Callable[[], float]


class Target(Protocol):
    """A server. `ask` sends one request and notes its answer, or its failure, in the record; it raises only
    CancelledError. `clock` returns the seconds since the start of the run."""

    async def ask(self, record: Record, clock: Clock) -> None: ...


class Load:
    """A run of a plan against a target. The records may be read while it runs."""

    def __init__(
        self, plan: Sequence[Planned], target: Target, *, max_concurrency: int | None = None, began: float | None = None
    ) -> None:
        """began: second 0 of the plan by time.monotonic, so that several processes send one plan together; None: soon
        after `run` is called."""
        self._plan = plan
        self._target = target
        self._places = None if max_concurrency is None else asyncio.Semaphore(max_concurrency)
        self._given = began
        self._began = 0.0
        self._running: dict[int, Record] = {}  # by the number of the request
        self._ended = Counts()
        self.records: list[Record] = []  # of the requests that have arrived
        self.cpu_share = 0.0  # of one core, that this process used during the run

    def clock(self) -> float:
        """Seconds since the start of the run, of a clock that all processes of the machine share."""
        return asyncio.get_running_loop().time() - self._began

    @property
    def counts(self) -> Counts:
        """Costs by the requests that run, not by those that have ended."""
        return self._ended + Counts.of(self._running.values())

    async def run(self) -> list[Record]:
        """Returns when all requests have ended. Cancelled, it ends those that run; their records stay."""
        soon = asyncio.get_running_loop().time() + LEAD_SECONDS
        self._began = soon if self._given is None else self._given
        cpu, wall = time.process_time(), time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        try:
            for planned in self._plan:
                await self._wait_until(planned.seconds)
                record = Record(planned)
                self._running[len(self.records)] = record
                task = asyncio.create_task(self._ask(record, len(self.records)))
                self.records.append(record)
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            self._end_unfinished()
            self.cpu_share = (time.process_time() - cpu) / max(time.monotonic() - wall, 1e-9)
        return self.records

    async def _ask(self, record: Record, number: int) -> None:
        if self._places is None:
            await self._ask_now(record)
        else:
            async with self._places:
                record.released = self.clock()
                await self._ask_now(record)
        self._ended += Counts.of([self._running.pop(number)])

    async def _ask_now(self, record: Record) -> None:
        """Asks the target; leaves when the plan says so."""
        leave = record.planned.cancel_seconds
        if leave is None:
            return await self._target.ask(record, self.clock)
        try:
            async with asyncio.timeout(max(record.planned.seconds + leave - self.clock(), 0.0)):
                await self._target.ask(record, self.clock)
        except TimeoutError:
            record.note_end(self.clock(), CANCELLED, "the client left")

    async def _wait_until(self, seconds: float) -> None:
        """Gives the answers a turn even if the driver is late."""
        await asyncio.sleep(max(seconds - self.clock(), 0.0))

    def _end_unfinished(self) -> None:
        for record in self.records:
            if not record.status:
                record.note_end(self.clock(), CANCELLED, "the run was ended")
