"""StepThreads: the threads of a step on the native kernels, which share their work between threads of their own.

Torch's own threads would go on spinning for milliseconds after each operation, on cores that the kernels need. So its
operations have one thread in a step, and as many as before around it. Only the thread that computes is concerned.
"""

from ..kernels.library import Kernels


class StepThreads:
    """Use as `with threads:` around a step."""

    def __init__(self, kernels: Kernels, number: int) -> None:
        """number: threads that compute, for each step anew, because several models may share the kernels."""
        self._kernels = kernels
        self._number = number
        self._torch_threads = 1

    def __enter__(self) -> None:
        self._kernels.num_threads = self._number
        self._torch_threads = self._kernels.set_openmp_threads(1)

    def __exit__(self, *_: object) -> None:
        self._kernels.set_openmp_threads(self._torch_threads)
