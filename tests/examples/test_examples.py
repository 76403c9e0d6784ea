"""The programs in examples/ run on the default model, and say what they are there to say."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # see tests/bench/test_demo.py
SELECT = "SELECT COUNT(*) FROM orders WHERE city = 'Oslo' AND status = 'pending'"
SAID = {
    "asyncio_engine": (SELECT, "Paris", "2 requests"),
    "chat": ("0 of ", SELECT, "city = 'Bergen'"),
    "inspect_adapter": ("it changes model.layers.", "would be refused", "loaded: shop-sql"),
    "mixed_batch": (SELECT, "fix(login)", "billing/double-charge", "Paris"),
    "stream_rows": ("step 11:",),
    "structured_output": ('"name": "Bob"', '"age": 33', ":", "yes"),
    "sum_adapters": ("{'commit-style': 1.0, 'shop-sql': 0.3}", "None: "),
}
SAID_OF_A_SERVER = {
    "openai_client": (SELECT, "Bergen", "shop-sql:0.5", "404 ['SmolLM2-135M-Instruct', 'shop-sql']"),
    "grpc_stream": (SELECT, "Bergen"),
    "grpc_batch": (SELECT, "Bergen", "NOT_FOUND"),
    "grpc_versions": ("uploaded version 2", "assistant@1: fix(login)", "active again: 1", "NOT_FOUND"),
}


@pytest.fixture(scope="module")
def addresses(real_model: Path) -> Iterator[list[str]]:
    """Of gRPC and of HTTP."""
    command = [sys.executable, "-m", "blora.engine.cli.main", "serve", str(real_model), "--port", "0"]
    options = ["--adapter", "shop-sql=bench/demo/adapters/shop-sql", "--adapter-upload-bytes", "64M"]
    options += ["--http-port", "0"]
    with subprocess.Popen([*command, *options], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            match = re.search(r" on (\S+) and (\S+)$", server.stdout.readline())
            assert match is not None, "the server did not start"
            yield list(match.groups())
        finally:
            server.terminate()
        assert server.wait(timeout=30) == 0


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, f"examples/{name}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("real_model")
@pytest.mark.parametrize("name", SAID)
def test_an_example_runs(name: str) -> None:
    said = run(name)
    assert all(text in said for text in SAID[name]), said


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID_OF_A_SERVER)
def test_an_example_that_asks_a_server_runs(name: str, addresses: list[str]) -> None:
    said = run(name, addresses[name == "openai_client"])
    assert all(text in said for text in SAID_OF_A_SERVER[name]), said


def test_every_example_is_run_and_short() -> None:
    programs = {path.stem: path.read_text().splitlines() for path in (ROOT / "examples").glob("*.py")}
    assert programs.keys() == SAID.keys() | SAID_OF_A_SERVER.keys()
    assert all(10 <= len(lines) <= 45 for lines in programs.values())
