"""Every instruction set that this machine runs is tested, not only the one that would be chosen; the code for the
widest vectors and pairwise products is tested everywhere, with these emulated."""

import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from blora.engine.kernels.library import Kernels, instruction_sets, load_kernels

ROOT = Path(__file__).parents[3]
EMULATED = "emulated avx512bf16"


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Built by the flags of setup.py, without any instruction set."""
    with patch("setuptools.setup"):
        recipe = runpy.run_path(str(ROOT / "setup.py"))
    library = tmp_path_factory.mktemp("kernels") / "emulated.so"
    flags = ["-DBLORA_EMULATE", "-fPIC", "-shared", *recipe["COMMON"], "-o", str(library)]
    subprocess.run(["g++", *flags, *recipe["SOURCES"]], cwd=ROOT, check=True)
    return Kernels(EMULATED, library)


@pytest.fixture(params=[*instruction_sets(), EMULATED])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == EMULATED:
        kernels: Kernels = request.getfixturevalue("emulated")
        return kernels
    built = load_kernels(request.param)
    assert built is not None, f"the kernels for {request.param} were not built"
    return built


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
