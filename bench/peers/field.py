"""Field: the workers that could be started, of which one at a time runs, and the entries that are out, with reasons."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .entry import Entry
from .protocol import Answer, Job, WorkerFailed
from .work import Mode
from .worker import Worker


class Field:
    """start: makes the worker of an entry. A worker that fails is out from then on; the others go on."""

    def __init__(self, entries: Sequence[Entry], start: Callable[[Entry], Worker]) -> None:
        self._entries = entries
        self._start = start
        self._workers: dict[Entry, Worker] = {}
        self.out: dict[Entry, str] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Starts the workers; inside `with`, all that could be started are loaded and paused."""
        try:
            for entry in self._entries:
                self._add(entry)
            yield
        finally:
            for worker in self._workers.values():
                worker.close()
            self._workers.clear()

    def _add(self, entry: Entry) -> None:
        progress(f"{entry.name}: starting")
        reason = entry.absent()
        if reason is not None:
            self._drop(entry, reason)
            return
        try:
            worker = self._workers[entry] = self._start(entry)
        except WorkerFailed as error:
            self._drop(entry, str(error))
        else:
            worker.pause()

    def greetings(self) -> dict[Entry, dict[str, Any]]:
        """Returns each worker's description of itself."""
        return {entry: worker.greeting for entry, worker in self._workers.items()}

    def entries(self, mode: Mode) -> list[Entry]:
        """Returns the entries of this mode that are not out."""
        return [entry for entry in self._entries if entry in self._workers and mode in entry.modes]

    def ask(self, entry: Entry, jobs: Sequence[Job]) -> list[Answer] | None:
        """Sends the jobs one after another; returns the answers, or None if the worker fails, which puts it out."""
        worker = self._workers[entry]
        try:
            with worker.awake():
                return [worker.ask(job) for job in jobs]
        except WorkerFailed as error:
            self._workers.pop(entry).close()
            self._drop(entry, str(error))
            return None

    def _drop(self, entry: Entry, reason: str) -> None:
        progress(f"{entry.name}: out: {reason}")
        self.out[entry] = reason


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
