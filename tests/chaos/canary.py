"""Canary: streams of a client in a process of its own, which go on while a scenario does its worst to the server."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blora.bench.load import Planned, Record, write_plan
from blora.bench.load.record import Answer

from .measured_load import p
from .mixed import GREEDY
from .room import Room, Server


class Canary:
    """The records are there once the context has ended."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def gap(self, percent: float) -> float:
        """A percentile of the seconds between two messages of a stream."""
        return p((gap for record in self.records for gap in record.gaps), percent)

    @property
    def answers(self) -> set[tuple[int, ...]]:
        """The different answers, of which there should be one."""
        return {tuple(answer.token_ids) for record in self.records for answer in record.answers}

    @property
    def failures(self) -> list[str]:
        return [f"{record.status}: {record.details}" for record in self.records if record.status != "OK"]


def streams(
    num_streams: int, num_tokens: int, prompt: Sequence[int] = (1, 2, 3), start: float = 0.0, tenant: str = ""
) -> list[Planned]:
    """Greedy requests of one prompt that begin together."""
    request = Planned(seconds=start, prompt=list(prompt), max_tokens=num_tokens, tenant=tenant, sampling=dict(GREEDY))
    return [request] * num_streams


@contextmanager
def canary(room: Room, server: Server, plan: Sequence[Planned]) -> Iterator[Canary]:
    """Runs while the body does, and longer if its plan is."""
    planned, recorded = room.folder / "canary-plan", room.folder / "canary-records"
    write_plan(planned, plan)
    recorded.unlink(missing_ok=True)  # of an earlier canary: one that cannot start leaves no records
    command = [sys.executable, "-P", "-m", "blora.engine.cli.main", "bench", "serve"]
    command += ["--base-url", server.address, "--replay", str(planned), "--records", str(recorded)]
    found = Canary()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield found
            process.wait()
        finally:
            process.kill()
    found.records = list(_read(recorded, plan))


def _read(path: Path, plan: Sequence[Planned]) -> Iterator[Record]:
    for line, planned in zip(path.read_text().splitlines(), plan, strict=True):
        fields = json.loads(line)
        record = Record(planned, sent=fields["sent"], token_times=fields["token_times"], status=fields["status"])
        record.token_counts, record.ended, record.details = (
            fields[name] for name in ("token_counts", "ended", "details")
        )
        record.answers = [Answer(token_ids) for token_ids in fields["token_ids"]]
        yield record
