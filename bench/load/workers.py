"""Workers: the processes that send a plan, so that neither a display nor a report delays a request.

Each worker opens a target of its own and takes every nth request. All begin at one moment of the machine's monotonic
clock; counts come while they run, the records at the end.
"""

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from .counts import Counts
from .driver import Load
from .plan import Planned
from .record import Record
from .targets.spec import TargetSpec

LEAD_SECONDS = 0.2  # from the moment all workers are ready to second 0 of the plan
REPORT_SECONDS = 0.25  # between two counts of a worker
STOP, READY, COUNTS, DONE, FAILED = "stop", "ready", "counts", "done", "failed"


@dataclass(slots=True)
class Sent:
    """A plan that was sent. is_whole: False if Ctrl-C broke it off; what had not arrived then has no record."""

    records: list[Record]
    cpu_shares: list[float]  # of one core, of each worker
    began: float  # second 0 of the plan, by time.monotonic
    is_whole: bool = True


Progress = Callable[[float, Counts], None]  # seconds since the start, what was counted


def send(
    plan: Sequence[Planned],
    spec: TargetSpec,
    *,
    num_workers: int = 1,
    max_concurrency: int | None = None,
    progress: Progress | None = None,
) -> Sent:
    """Sends a plan and returns when all requests have ended. SIGINT breaks it off: what was measured is returned.
    Raises OSError if a worker cannot open its target, or dies."""
    context = multiprocessing.get_context("spawn")
    limits = _shares(max_concurrency, num_workers)
    workers = [_Worker.start(context, spec, plan[n::num_workers], limits[n]) for n in range(num_workers)]
    try:
        return _conduct(workers, progress or (lambda *_: None))
    finally:
        for worker in workers:
            worker.end()


def _shares(limit: int | None, count: int) -> list[int | None]:
    """Divides a number of requests at once among the workers, at least 1 each."""
    if limit is None:
        return [None] * count
    if limit < count:
        raise ValueError(f"{count} workers cannot send {limit} requests at once: each needs one")
    return [limit // count + (n < limit % count) for n in range(count)]


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: "Connection[Any, Any]"
    counts: Counts = field(default_factory=Counts)

    @classmethod
    def start(cls, context: Any, spec: TargetSpec, plan: Sequence[Planned], limit: int | None) -> "_Worker":
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, spec, plan, limit), daemon=True)
        process.start()
        there.close()
        return cls(process, here)

    def receive(self) -> tuple[str, Any]:
        """Raises OSError if the worker has failed or died."""
        try:
            kind, content = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise OSError(f"a process of the generator ended with status {self.process.exitcode}") from None
        if kind == FAILED:
            raise OSError(f"the load could not be sent: {content}")
        return kind, content

    def end(self) -> None:
        self.pipe.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _conduct(workers: Sequence[_Worker], progress: Progress) -> Sent:
    for worker in workers:
        worker.receive()  # READY
    began = time.monotonic() + LEAD_SECONDS
    for worker in workers:
        worker.pipe.send(began)
    sent = Sent([], [], began)
    open_pipes = {worker.pipe: worker for worker in workers}
    while open_pipes:
        try:
            for pipe in wait(list(open_pipes), timeout=1.0):
                worker = open_pipes[pipe]  # type: ignore[index]
                kind, content = worker.receive()
                if kind == COUNTS:
                    worker.counts = content
                else:
                    records, share = content
                    sent.records += records
                    sent.cpu_shares.append(share)
                    worker.counts = Counts.of(records)
                    del open_pipes[worker.pipe]
            progress(time.monotonic() - began, sum((worker.counts for worker in workers), Counts()))
        except KeyboardInterrupt:
            sent.is_whole = False
            for pipe in open_pipes:
                with suppress(OSError):
                    pipe.send(STOP)
    sent.records.sort(key=lambda record: record.planned.seconds)
    return sent


def _work(pipe: "Connection[Any, Any]", spec: TargetSpec, plan: Sequence[Planned], limit: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to stop
    try:
        asyncio.run(_send(pipe, spec, plan, limit))
    except Exception as error:  # it is told to the parent, which raises it
        with suppress(OSError):
            pipe.send((FAILED, f"{type(error).__name__}: {error}"))


async def _send(pipe: "Connection[Any, Any]", spec: TargetSpec, plan: Sequence[Planned], limit: int | None) -> None:
    async with spec.open() as target:
        pipe.send((READY, None))
        began = await asyncio.to_thread(pipe.recv)
        load = Load(plan, target, max_concurrency=limit, began=began)
        running = asyncio.create_task(load.run())
        while not running.done():
            await asyncio.wait([running], timeout=REPORT_SECONDS)
            pipe.send((COUNTS, load.counts))
            if pipe.poll():
                pipe.recv()  # STOP, or the parent's end
                running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        pipe.send((DONE, (load.records, load.cpu_share)))
