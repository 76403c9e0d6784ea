"""The demo: one server, one client, the four adapters and the base model at once, with every row growing on the screen.

    python bench/demo/run.py [--model FOLDER]

Starts `blora serve` with the demo adapters, sends all (prompt, adapter) pairs over one connection at the same time,
shows every row as it grows (or plain lines, without a terminal), checks the answers with the tasks' own programs,
prints a summary and stops the server. The exit status is 0 if the answers of all adapters are right.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# When Python runs this file, it looks for modules beside it only, not in the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.demo.example import Example
from bench.demo.tasks import TASKS, Task, held_out_examples
from blora.proto.client import Client

ADAPTERS = Path(__file__).parent / "adapters"
ROWS_PER_TASK = 3
BASE_ROWS = ("What is the capital of France?", "Write one sentence about the sea.")
BASE = "(base model)"
START_TIMEOUT = 120.0  # seconds
INTERRUPTED = 130  # the exit status that shells report for a program ended by SIGINT
REFRESH = 0.1  # seconds between two pictures of the screen


@dataclass
class Row:
    """One (prompt, adapter) pair and its output so far."""

    adapter: str | None
    prompt: str
    shown: str  # the part of the prompt that is shown
    max_tokens: int
    task: Task | None = None
    example: Example | None = None
    text: str = ""
    num_tokens: int = 0
    sent: float = 0.0
    first: float | None = None
    last: float = 0.0
    error: str | None = None
    is_done: bool = False

    @property
    def is_right(self) -> bool | None:
        """Whether the answer is right; None for the base model, whose answers no program checks."""
        if self.task is None or self.example is None:
            return None
        return self.error is None and self.task.check(self.example, self.text)


def demo_rows() -> list[Row]:
    """Returns the rows of the adapters and of the base model, mixed."""
    rows = []
    for name, task in TASKS.items():
        for example in held_out_examples(task)[:ROWS_PER_TASK]:
            rows.append(Row(name, task.prompt(example), example.text, task.max_tokens, task, example))
    for question in BASE_ROWS:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        rows.append(Row(None, prompt, question, 40))
    return [row for offset in range(ROWS_PER_TASK) for row in rows[offset::ROWS_PER_TASK]]


@contextmanager
def running_server(model: Path) -> Iterator[str]:
    """Starts `blora serve` on free ports and yields its gRPC address; then stops it and checks its exit status."""
    command = [sys.executable, "-m", "blora.engine.cli.main", "serve", str(model), "--port", "0", "--http-port", "0"]
    command += ["--memory", "1GiB"]
    for name in TASKS:
        command += ["--adapter", f"{name}={ADAPTERS / name}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log: list[str] = []
    # A thread reads the log, because the server would block once the log's pipe is full.
    threading.Thread(target=log.extend, args=(server.stderr,), daemon=True).start()
    try:
        yield wait_until_serving(server, log)
    finally:
        status = stop(server)
    if status != 0:
        raise RuntimeError(f"the server ended with status {status}:\n{''.join(log)}")


def stop(server: "subprocess.Popen[str]") -> int:
    """Stops the server; returns its exit status. A second Ctrl-C of the user leaves no server behind, either."""
    try:
        server.send_signal(signal.SIGTERM)
        return server.wait(timeout=30)
    finally:
        server.kill()


def wait_until_serving(server: "subprocess.Popen[str]", log: Sequence[str]) -> str:
    timer = threading.Timer(START_TIMEOUT, server.kill)
    timer.start()
    try:
        line = server.stdout.readline() if server.stdout else ""
    finally:
        timer.cancel()
    match = re.search(r"is serving .* on (\S+) and (\S+)", line)
    if match is None:
        server.wait()
        raise RuntimeError(f"the server did not start:\n{''.join(log)}")
    print(f"gRPC: {match[1]}, OpenAI over HTTP: {match[2]}", flush=True)
    return match[1]


def follow(client: Client, row: Row) -> None:
    """Fills a row from its stream. Each stream has its own thread, because the client is synchronous."""
    row.sent = time.monotonic()
    try:
        for sample in client.generate_stream(row.prompt, row.adapter, temperature=0, max_tokens=row.max_tokens):
            row.last = time.monotonic()
            row.first = row.first or row.last
            row.text += sample.text
            row.num_tokens += len(sample.token_ids)
    except Exception as error:
        row.error = str(error)
    row.is_done = True


@dataclass
class Screen:
    """Draws all rows in place on a terminal; elsewhere prints each row when it is done."""

    rows: Sequence[Row]
    is_live: bool = field(default_factory=lambda: sys.stdout.isatty() and os.environ.get("TERM") != "dumb")
    num_drawn: int = 0
    printed: set[int] = field(default_factory=set)

    def draw(self) -> None:
        if self.is_live:
            width = shutil.get_terminal_size().columns
            up = f"\x1b[{self.num_drawn}A" if self.num_drawn else ""
            print(up + "\n".join(f"\x1b[2K{line_of(row, width)}" for row in self.rows), flush=True)
            self.num_drawn = len(self.rows)
            return
        for index, row in enumerate(self.rows):
            if row.is_done and index not in self.printed:
                self.printed.add(index)
                print(line_of(row, 160), flush=True)


def line_of(row: Row, width: int) -> str:
    mark = {None: " ", True: "+", False: "-"}[row.is_right if row.is_done else None]
    question_width = min(44, width // 4)  # a narrow terminal shows mostly answers
    question = shorten(row.shown, question_width).ljust(question_width)
    answer = row.error or row.text.replace("\n", " ")
    return f"{mark} {(row.adapter or BASE):16} {question} > {answer}"[: width - 1]


def shorten(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def summary(rows: Sequence[Row]) -> str:
    lines = [f"{'adapter':16} {'rows':>4} {'tokens':>6} {'first token':>11} {'tokens/s':>8}  checks"]
    for name in [None, *TASKS]:
        own = [row for row in rows if row.adapter == name]
        first = sorted((row.first or row.last) - row.sent for row in own)[len(own) // 2]
        num_tokens = sum(row.num_tokens for row in own)
        rate = sum(row.num_tokens / max(row.last - row.sent, 1e-9) for row in own) / len(own)
        checked = [row.is_right for row in own if row.is_right is not None]
        checks = f"{sum(checked)} of {len(checked)} passed" if checked else "not checked"
        lines.append(f"{name or BASE:16} {len(own):4} {num_tokens:6} {first:9.2f} s {rate:8.1f}  {checks}")
    seconds = max(row.last for row in rows) - min(row.sent for row in rows)
    total = sum(row.num_tokens for row in rows)
    lines.append(f"{len(rows)} rows, {total} tokens in {seconds:.1f} s: {total / seconds:.0f} tokens/s in one batch")
    lines.append("first token: median; tokens/s: of one row, the wait for the first token included")
    return "\n".join(lines)


def run(model: Path) -> int:
    rows = demo_rows()
    print(f"starting a server with {len(TASKS)} adapters ...", flush=True)
    with running_server(model) as address, Client(address, timeout=300) as client:
        print(f"{len(rows)} rows at once on {address}\n", flush=True)
        threads = [threading.Thread(target=follow, args=(client, row), daemon=True) for row in rows]
        for thread in threads:
            thread.start()
        screen = Screen(rows)
        while any(thread.is_alive() for thread in threads):
            screen.draw()
            time.sleep(REFRESH)
        screen.draw()
    print("\n" + summary(rows))
    return 0 if all(row.is_right is not False and row.error is None for row in rows) else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(".cache/models/SmolLM2-135M-Instruct"))
    try:
        sys.exit(run(parser.parse_args().model))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
