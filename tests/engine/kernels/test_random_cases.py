"""Random cases of all kernels on every build; `make kernels-grid` runs many more."""

import pytest
from kernel_cases.random_cases import check_case

from blora.engine.kernels.library import Kernels

CASES = 100  # on each build


@pytest.mark.parametrize("first", range(0, CASES, 20))
def test_random_cases(kernels: Kernels, first: int) -> None:
    for seed in range(first, first + 20):
        check_case(seed, kernels)
