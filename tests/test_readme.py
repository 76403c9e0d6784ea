"""Checks that the README is true: its examples run, and its figures are the measured ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(from .*?)```", README, re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_what_loading_does_is_what_was_measured(name: str) -> None:
    measured = json.loads((ROOT / "bench/results/loading.json").read_text())
    text = (ROOT / name).read_text()
    assert f"{measured['loaded']} cold adapters" in text
    assert f"{measured['itl_p99_ratio']:.2f}" in text


def test_its_speeds_are_those_of_the_comparison() -> None:
    table = re.search(r"^\| blora.*?\n\n", README, re.DOTALL | re.MULTILINE)
    assert table is not None
    compared = set(re.findall(r"[\d,.]+", (ROOT / "docs/performance.md").read_text()))
    shown = set(re.findall(r"\| ([\d,]+) (?=\|)", table[0]))
    assert shown and shown <= compared


def test_it_is_one_page() -> None:
    assert len(README.splitlines()) <= 130


@pytest.mark.usefixtures("real_model")
def test_the_example_in_process_runs() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # see tests/bench/test_demo.py
    command = [sys.executable, "-c", EXAMPLES[0]]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stderr
    assert all(f"[{row}]" in result.stdout for row in range(5))


def test_the_grpc_example_runs(real_model: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "blora.engine.cli.main",
        "serve",
        str(real_model),
        "--port",
        "0",
        "--threads",
        "1",
    ]
    adapters = ["--adapter", "shop-sql=bench/demo/adapters/shop-sql", "--adapter-root", "bench/demo"]
    with subprocess.Popen([*command, *adapters], cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            match = re.search(r" on (\S+)$", server.stdout.readline())
            assert match is not None
            example = EXAMPLES[1].replace("127.0.0.1:50051", match[1])
            result = subprocess.run(
                [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=90
            )
            assert result.returncode == 0, result.stderr
            assert "['commits', 'shop-sql']" in result.stdout
            assert "SELECT COUNT(*) FROM orders WHERE city = 'Oslo' AND status = 'pending'" in result.stdout
        finally:
            server.terminate()
        assert server.wait(timeout=20) == 0
