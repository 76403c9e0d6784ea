"""Sets the number of threads of torch and the kernels for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def compute_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
