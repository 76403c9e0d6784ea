"""The tests run on every instruction set of this machine, not only on the one that would be chosen. The code for the
widest vectors, pairwise products and tiles is tested everywhere, by emulation.

`--kernels FOLDER` takes the libraries from a folder instead (see kernel_cases/build.py); `make sanitize` uses it.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from compute_threads import compute_threads
from kernel_cases.build import EMULATED, build_emulated, builds, path_of

from blora.engine.kernels.library import Kernels, load_kernels


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernels", type=Path, help="folder with a library of each instruction set, to test instead")


@pytest.fixture(scope="session")
def load_build(request: pytest.FixtureRequest) -> Callable[[str], Kernels]:
    """Loads a build by its name; skips the test where the operating system does not let it run."""
    folder = request.config.getoption("--kernels", default=None)

    @cache
    def load(name: str) -> Kernels:
        try:
            if folder is not None:
                return Kernels(name, path_of(folder, name))
            if name == EMULATED:
                return Kernels(name, build_emulated())
            built = load_kernels(name)
        except PermissionError as error:
            pytest.skip(str(error))
        assert built is not None, f"the kernels for {name} were not built"
        return built

    return load


# The build that the engine would choose here comes first; the others are left out by `make test-fast`.
BUILDS = [pytest.param(name, marks=[pytest.mark.slow] if index else []) for index, name in enumerate(builds())]


@pytest.fixture(params=BUILDS)
def kernels(request: pytest.FixtureRequest, load_build: Callable[[str], Kernels]) -> Kernels:
    return load_build(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest, kernels: Kernels) -> Iterator[int]:
    with compute_threads(kernels, request.param):
        yield request.param
