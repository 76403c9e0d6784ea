"""`blora bench footprint` starts a real server, and its report describes that server's processes."""

import json
import os
from pathlib import Path

import pytest

from blora.bench.footprint import resident_bytes
from blora.engine.cli import main as cli

pytestmark = pytest.mark.slow


def test_footprint(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"bench footprint {tiny_model} --requests 60 --adapters 2 --starts 1 --memory 4MiB"
    line += f" --adapter-folder {tmp_path / 'adapters'} --json {tmp_path / 'f.json'}"
    assert cli.main(line.split()) == 0
    assert "growth since 12 requests" in capsys.readouterr().out
    report = json.loads((tmp_path / "f.json").read_text())
    assert [sample["requests"] for sample in report["samples"]] == list(range(0, 61, 6))
    assert all(
        sample["engine"] > sample["front_end"] > 10 << 20 for sample in report["samples"]
    )  # only one of them has torch
    assert report["start_seconds"][0] > 0 and report["arena_bytes"] == 4 << 20


def test_what_a_process_has_in_ram() -> None:
    before = resident_bytes(os.getpid())
    filled = bytearray(os.urandom(1 << 20) * 64)
    assert resident_bytes(os.getpid()) - before >= len(filled) * 0.9
    with pytest.raises(OSError, match="No such file"):
        resident_bytes(1 << 30)
