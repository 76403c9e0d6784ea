"""Counts: what has become of the requests of a run, so far."""

from collections.abc import Iterable
from dataclasses import dataclass

from .record import OK, Record


@dataclass(frozen=True, slots=True)
class Counts:
    arrived: int = 0
    running: int = 0
    finished: int = 0  # ended OK
    failed: int = 0  # ended otherwise
    tokens: int = 0

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Counts":
        arrived = running = finished = failed = tokens = 0
        for record in records:
            arrived += 1
            tokens += record.num_tokens
            running += not record.status
            finished += record.status == OK
            failed += bool(record.status) and record.status != OK
        return cls(arrived, running, finished, failed, tokens)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.arrived + other.arrived,
            self.running + other.running,
            self.finished + other.finished,
            self.failed + other.failed,
            self.tokens + other.tokens,
        )
