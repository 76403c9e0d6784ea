"""Worker: a peer's process group as the driver sees it. The driver pauses it, resumes it, sends it jobs and ends it."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .protocol import Answer, Job, WorkerFailed, read_answer

END_SECONDS = 10
CHUNK = 1 << 20


class Worker:
    """A worker's process group, whose standard error goes to `log`. Every method may raise WorkerFailed."""

    def __init__(self, command: Sequence[str], log: Path, start_seconds: float, job_seconds: float) -> None:
        self._log, self._job_seconds = log, job_seconds
        self._received = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("wb") as errors:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
                )
        except OSError as error:
            raise WorkerFailed(f"{Path(command[0]).name} cannot be started: {error.strerror}") from None
        try:
            self.greeting = self._read(start_seconds)
        except BaseException:
            self.close()
            raise

    def ask(self, job: Job) -> Answer:
        if self._process.stdin is None:
            raise WorkerFailed("it has no input")
        try:
            self._process.stdin.write(job.to_json().encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerFailed(self._how_it_ended()) from None
        return read_answer(self._read(self._job_seconds), job)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Lets the worker run inside `with` only: a busily waiting engine would take cores from the measured one."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """Ends the whole group, in any state. Idempotent."""
        self._signal(signal.SIGCONT)
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self._signal(signal.SIGKILL)  # ends children that outlived the worker, too
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _read(self, seconds: float) -> dict[str, Any]:
        """Returns the next message."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            self._receive(deadline - time.monotonic(), seconds)
        line, _, self._received = self._received.partition(b"\n")
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            raise WorkerFailed(f"it answered {line[:80]!r}") from None
        return message

    def _receive(self, remaining: float, seconds: float) -> None:
        if self._process.stdout is None:
            raise WorkerFailed("it has no output")
        output = self._process.stdout.fileno()
        ready, _, _ = select.select([output], [], [], max(remaining, 0))
        if not ready:
            raise WorkerFailed(f"no answer within {seconds:.0f} seconds")
        chunk = os.read(output, CHUNK)
        if not chunk:
            raise WorkerFailed(self._how_it_ended())
        self._received += chunk

    def _how_it_ended(self) -> str:
        """Returns the exit status and the last printed line, which is most often the exception."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        lines = self._log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"it ended with status {self._process.poll()}: {last[:300]}"
