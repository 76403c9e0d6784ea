"""The team of threads that share a call: its jobs, their number, forks, and calls from several threads of Python."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from compute_threads import compute_threads
from torch import Tensor

from blora.engine.cpu.threads import StepThreads
from blora.engine.kernels.library import Epilogue, Kernels, PackedLinear

ROOT = Path(__file__).parents[3]
STRESS = ROOT / "tests/kernel_cases/team_stress.cpp"
OUT, IN = 400, 64  # so wide that threads share the columns


@pytest.fixture
def linear(kernels: Kernels) -> PackedLinear:
    return kernels.pack_linear(torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)))


def multiply(kernels: Kernels, linear: PackedLinear, seed: int) -> Tensor:
    x = torch.randn(40, IN, generator=torch.Generator().manual_seed(seed))
    y = torch.full((len(x), OUT), torch.nan)
    kernels.linear(linear, x, y, Epilogue.STORE_FLOAT)
    return y


@pytest.mark.slow
def test_every_piece_is_computed_once_and_seen_by_the_next_job(tmp_path: Path) -> None:
    program = tmp_path / "stress"
    sources = [str(STRESS), str(ROOT / "engine/kernels/team.cpp")]
    subprocess.run(["g++", "-std=c++17", "-O1", "-fopenmp", *sources, "-o", str(program)], check=True)
    subprocess.run([str(program), "5000"], check=True, timeout=60)


def test_the_number_of_threads_may_change_between_calls(kernels: Kernels, linear: PackedLinear) -> None:
    expected = multiply(kernels, linear, 0)
    for number in (2, 5, 1, 3, 200, 2):
        with compute_threads(kernels, number):
            assert torch.equal(multiply(kernels, linear, 0), expected), number
    with pytest.raises(ValueError, match="num_threads: 0"):
        kernels.num_threads = 0


def test_any_thread_may_call(kernels: Kernels, linear: PackedLinear) -> None:
    expected = [multiply(kernels, linear, seed) for seed in range(4)]
    with compute_threads(kernels, 3), ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda seed: multiply(kernels, linear, seed), [0, 1, 2, 3] * 20))
    assert all(torch.equal(y, expected[i % 4]) for i, y in enumerate(results))


FORK = """
import os
import torch
from blora.engine.kernels.library import Epilogue, load_kernels
kernels = load_kernels()
kernels.num_threads = 3
linear = kernels.pack_linear(torch.randn({out}, {in_}))
x = torch.randn(40, {in_})
def multiply():
    y = torch.empty(40, {out})
    kernels.linear(linear, x, y, Epilogue.STORE_FLOAT)
    return y
y = multiply()
child = os.fork()
if not child:
    is_same = torch.equal(multiply(), y)
    kernels.num_threads = 2
    os._exit(0 if is_same and torch.equal(multiply(), y) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(multiply(), y)
"""


@pytest.mark.slow
def test_a_child_has_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORK.format(out=OUT, in_=IN)], check=True, timeout=100)


def test_torch_has_one_thread_in_a_step(kernels: Kernels) -> None:
    before = torch.get_num_threads()
    threads = StepThreads(kernels, 3)
    torch.set_num_threads(2)
    try:
        with compute_threads(kernels, 1):
            with threads:
                assert (torch.get_num_threads(), kernels.num_threads) == (1, 3)
            with pytest.raises(KeyError), threads:
                raise KeyError
            assert torch.get_num_threads() == 2
            with ThreadPoolExecutor(1) as pool, threads:  # a user's other thread keeps its own
                assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
