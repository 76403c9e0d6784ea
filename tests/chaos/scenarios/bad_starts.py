"""G6: a server that cannot start says why in one line, quickly."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors.numpy import load_file, save_file

from ..gates import Check, at_most, gate, none_of
from ..room import Room, copied

SECONDS = 10.0


@gate(
    "G6",
    "failures",
    "starts that cannot succeed: a taken port, models that are missing, torn, huge or not finite, too little memory, "
    "bad options, a bad adapter",
    "exit status not 0 within 10 s, with the reason in the last line and no traceback",
)
def bad_starts(room: Room) -> Iterator[Check]:
    faults, longest = [], 0.0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        starts = list(_starts(room, taken.getsockname()[1]))
        for name, arguments in starts:
            began = time.monotonic()
            command = [sys.executable, "-m", "blora.engine.cli.main", "serve", "--port", "0", *arguments]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            except subprocess.TimeoutExpired:
                faults.append(f"{name}: does not end")
                continue
            longest = max(longest, time.monotonic() - began)
            last = (done.stderr.strip().splitlines() or [""])[-1]
            if done.returncode == 0 or "Traceback" in done.stderr or not last.startswith("blora"):
                faults.append(f"{name}: status {done.returncode}, {last!r}")
    yield none_of("starts without a status and a reason", faults, len(starts))
    yield at_most("longest", longest, SECONDS, "s")


def _starts(room: Room, port: int) -> Iterator[tuple[str, list[str]]]:
    tiny = str(room.tiny)
    yield "taken port", [tiny, "--port", str(port), "--memory", "2MB"]
    yield "no such model", [str(room.folder / "nothing")]
    yield "more memory than there is", [tiny, "--memory", "100000G"]
    yield "too little memory", [tiny, "--memory", "1KB"]
    yield "less memory than a request needs", [tiny, "--memory", "20KB", "--max-model-len", "4096"]
    yield "unknown option", [tiny, "--no-such-option"]
    yield "bad value", [tiny, "--block-size", "-3"]
    yield "no such adapter", [tiny, "--memory", "2MB", f"--adapter=a={room.folder / 'nothing'}"]
    yield "configuration that is no JSON", [str(_with_config(room, "no-json", "{"))]
    layers = json.loads((room.tiny / "config.json").read_text()) | {"num_hidden_layers": 1_000_000}
    yield "a million layers", [str(_with_config(room, "layers", json.dumps(layers)))]
    torn = copied(room.tiny, room.folder / "torn")
    content = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(content[: len(content) // 2])
    yield "torn weights", [str(torn)]
    spoilt = copied(room.tiny, room.folder / "spoilt")
    tensors = load_file(spoilt / "model.safetensors")
    next(iter(tensors.values())).reshape(-1)[3] = float("nan")
    save_file(tensors, spoilt / "model.safetensors", {"format": "pt"})
    yield "weights that are not finite", [str(spoilt), "--memory", "2MB"]


def _with_config(room: Room, name: str, text: str) -> Path:
    folder = copied(room.tiny, room.folder / name)
    (folder / "config.json").write_text(text)
    return folder
