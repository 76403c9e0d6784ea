"""The protocol of driver and worker: JSON lines. Standard library only, because it runs in every peer's environment.

The worker writes {"ready": true, "version": ..., "settings": ...} when its model is loaded. Then each line it reads is
a job, {"prompts": [[id]], "adapters": [index or null], "max_tokens": n}, and each line it writes is the answer,
{"seconds": t, "tokens": [[id]]}, or {"error": text} if the job failed. It ends when its input ends.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

Tokens = list[list[int]]


@dataclass(frozen=True)
class Job:
    """Rows that start together. adapters: for each row an index into the worker's adapters, or None for the base
    model."""

    prompts: Tokens
    adapters: list[int | None]
    max_tokens: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Answer:
    """The tokens of a job's rows. seconds: time of the generation only."""

    seconds: float
    tokens: Tokens


class WorkerFailed(Exception):
    """A worker could not be started, has ended, or failed at a job; the text is the reason."""


def read_answer(message: dict[str, Any], job: Job) -> Answer:
    """Returns the answer. Raises WorkerFailed for an error, and if a row has not exactly `max_tokens` tokens."""
    if "error" in message:
        raise WorkerFailed(str(message["error"]))
    answer = Answer(float(message["seconds"]), message["tokens"])
    lengths = [len(row) for row in answer.tokens]
    if lengths != [job.max_tokens] * len(job.prompts):
        raise WorkerFailed(f"rows have {sorted(set(lengths))} tokens instead of {job.max_tokens}")
    return answer


def worker_arguments(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options of every worker; a worker may add its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="model to load")
    parser.add_argument(
        "--adapter", type=Path, action="append", default=[], dest="adapters", help="PEFT folder; may be repeated"
    )
    parser.add_argument("--threads", type=int, required=True, help="compute threads")
    parser.add_argument("--rows", type=int, required=True, help="the most rows at once")
    parser.add_argument(
        "--length", type=int, required=True, help="the most tokens of a row, prompt and output together"
    )
    return parser


def claim_stdout() -> TextIO:
    """Takes standard output for answers alone. Libraries then print to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(answers: TextIO, generate: Callable[[Job], Tokens], version: str, settings: str) -> None:
    """Answers jobs until the input ends. settings: a description of this peer's settings, for the report."""
    _write(answers, {"ready": True, "version": version, "settings": settings})
    for line in sys.stdin:
        job = Job(**json.loads(line))
        try:
            started = time.perf_counter()
            tokens = generate(job)
            seconds = time.perf_counter() - started
        except Exception as error:  # the worker reports a failed job, and the driver decides
            _write(answers, {"error": f"{type(error).__name__}: {error}"})
        else:
            _write(answers, {"seconds": seconds, "tokens": tokens})


def _write(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
