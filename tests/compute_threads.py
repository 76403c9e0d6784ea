"""Sets the number of threads of the kernels for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from blora.engine.kernels.library import Kernels


@contextmanager
def compute_threads(kernels: Kernels, number: int) -> Iterator[None]:
    before = kernels.num_threads
    kernels.num_threads = number
    try:
        yield
    finally:
        kernels.num_threads = before
