"""Facts about processes from /proc."""

import os
import time
from pathlib import Path

ENGINE = "blora.engine.processes.engine"
LOADER = "blora.engine.processes.loader"
LOOKOUT = "blora.engine.processes.lookout"
DOWNLOAD = "blora.engine.processes.download"


def is_running(pid: int) -> bool:
    """Returns whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def is_there(pid: int) -> bool:
    """Running, or a zombie."""
    return Path(f"/proc/{pid}").exists()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def children_that_run(module: str) -> list[int]:
    """The children of this process that `python -m module` has become, oldest first."""
    return [pid for pid in children_of(os.getpid()) if module in _command_of(pid)]


def child_that_runs(module: str) -> int:
    """The newest: that of an AsyncLLM that the test has started, where one of all tests runs beside it."""
    return children_that_run(module)[-1]


def _command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except FileNotFoundError:
        return []


def seconds_at_work(pid: int) -> float:
    """For how long a process has had a core."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def wait_until_ended(*pids: int) -> None:
    deadline = time.monotonic() + 100
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.02)


def resident_bytes(pid: int | None = None) -> int:
    """Bytes in RAM of a process; of this one without a pid."""
    pages = int(Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
