"""The demo adapters do what they were trained for: through gRPC, all tasks and the base model in one batch."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.demo.tasks import TASKS, Example, Task, held_out_examples, train_examples
from blora.proto.client import Client

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
ADAPTERS = ROOT / "bench/demo/adapters"
NUM_HELD_OUT = 50  # of each task
# On a small machine a second thread waits for its core at every barrier while anything else runs.
ONE_THREAD = ["--threads", "1"]


@pytest.fixture(scope="module")
def client(real_model: Path) -> Iterator[Client]:
    command = [sys.executable, "-m", "blora.engine.cli.main", "serve", str(real_model), "--port", "0"]
    adapters = [f"--adapter={name}={ADAPTERS / name}" for name in TASKS]
    with subprocess.Popen(
        [*command, "--memory", "1GiB", *ONE_THREAD, *adapters], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        match = re.search(r" on (\S+)$", server.stdout.readline())
        assert match is not None, "the server did not start"
        with Client(match[1], timeout=500) as client:
            yield client
        server.terminate()
        assert server.wait(timeout=100) == 0


def answer(client: Client, task: Task, example: Example, adapter: str | None) -> str:
    response = client.generate(task.prompt(example), adapter, temperature=0, max_tokens=task.max_tokens)
    return str(response.samples[0].text)


@pytest.mark.grid
def test_every_adapter_is_right_and_the_base_model_is_not(client: Client, cases: Callable[[int, int], int]) -> None:
    num_examples = cases(12, NUM_HELD_OUT)
    rows = [
        (task, example, adapter)
        for index in range(num_examples)
        for task in TASKS.values()
        for example in [held_out_examples(task, NUM_HELD_OUT)[index]]
        for adapter in (task.name, None)
    ]
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda row: answer(client, *row), rows))
    for name in TASKS:
        right = {True: 0, False: 0}  # right answers with the adapter and without
        for (task, example, adapter), text in zip(rows, answers, strict=True):
            if task.name == name:
                right[adapter is not None] += task.check(example, text)
        assert right[True] >= 0.9 * num_examples, (name, right)
        assert right[False] < 0.2 * num_examples, (name, right)


@pytest.mark.parametrize("name", TASKS)
def test_committed_adapters_are_small_and_in_16_bit(name: str) -> None:
    files = sorted((ADAPTERS / name).iterdir())
    assert [file.name for file in files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert sum(file.stat().st_size for file in files) <= 2_500_000
    with files[1].open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert {entry["dtype"] for key, entry in header.items() if key != "__metadata__"} <= {"BF16", "F16"}


def test_ranks_and_modules_differ() -> None:
    configs = [json.loads((ADAPTERS / name / "adapter_config.json").read_text()) for name in TASKS]
    assert len({config["r"] for config in configs}) == len(TASKS)
    assert len({tuple(sorted(config["target_modules"])) for config in configs}) == len(TASKS)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_held_out_inputs_are_never_trained_on(task: Task) -> None:
    trained = {example.text for example in train_examples(task, 500, seed=1)}
    assert trained.isdisjoint(example.text for example in held_out_examples(task, NUM_HELD_OUT))


@pytest.mark.parametrize("num_signals", [1, 2])
@pytest.mark.parametrize("shown", ["starting a server", "rows at once"])
def test_ctrl_c_ends_the_demo_and_its_server(shown: str, num_signals: int, real_model: Path) -> None:
    command = [sys.executable, "-u", "bench/demo/run.py", "--model", str(real_model)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background processes ignore SIGINT, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as demo:
        assert demo.stdout is not None
        while shown not in demo.stdout.readline():
            assert demo.poll() is None
        for _ in range(num_signals):
            time.sleep(0.2)
            os.killpg(demo.pid, signal.SIGINT)  # as Ctrl-C on a terminal does
        _, errors = demo.communicate(timeout=200)
    assert demo.returncode != 0
    if num_signals == 1:  # a second signal may reach a Python that is ending already, which then prints an error
        assert (demo.returncode, errors) == (130, "")
    wait_until_gone(demo.pid)


def wait_until_gone(group: int) -> None:
    """Raises if processes of the group still exist after a while."""
    end = time.monotonic() + 100
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the demo left processes behind")
