"""ProcessFacts: memory, files and threads of a server and its children, from /proc."""

from pathlib import Path

from processes import children_of, resident_bytes


class ProcessFacts:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def children(self) -> dict[int, str]:
        """Process id and module of each child."""
        return {child: _module_of(child) for child in children_of(self.pid)}

    def resident_bytes(self, pid: int | None = None) -> int:
        """Bytes in RAM of the front end, or of another process."""
        return resident_bytes(pid or self.pid)

    def num_files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def num_threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))


def _module_of(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return command[command.index("-m") + 1] if "-m" in command else ""
