"""Limits of this machine, measured in the same run as the kernels: a streaming read, and blora's own GEMM in cache."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from blora.engine.kernels.library import Epilogue, Kernels

STREAM_BYTES = 256 << 20  # many times the size of the caches
GEMM_SHAPES = ((576, 96), (1024, 192))  # inputs and outputs of a square weight; rows
GEMM_CALLS = 20
MIN_REPEATS = 7
METER_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Limits:
    bytes_per_s: float
    flops_per_s: float

    def seconds(self, num_bytes: float, num_flops: float) -> float:
        """Returns the least time to read so many bytes and do so many operations at the same time."""
        return max(num_bytes / self.bytes_per_s, num_flops / self.flops_per_s)


class LimitMeter:
    """Measures the limits again for every figure, because those of a shared machine change within seconds."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._stream = torch.ones(STREAM_BYTES // 8, dtype=torch.int64)
        self._gemms = [_gemm(kernels, width, rows) for width, rows in GEMM_SHAPES]
        self.seen: list[Limits] = []

    def measure(self) -> Limits:
        """Measures the rate of torch's sum over int64, which does little but read, and that of the faster GEMM."""
        stream = STREAM_BYTES / median_seconds(self._stream.sum, METER_SECONDS)
        gemm = max(flops / median_seconds(call, METER_SECONDS) for call, flops in self._gemms)
        self.seen.append(Limits(stream, gemm))
        return self.seen[-1]

    @property
    def median(self) -> Limits:
        """The medians of all measurements."""
        return Limits(
            statistics.median(limits.bytes_per_s for limits in self.seen),
            statistics.median(limits.flops_per_s for limits in self.seen),
        )


def median_seconds(call: Callable[[], object], seconds: float) -> float:
    """Returns the median time of a call, repeated for so many seconds after one that warms up."""
    call()
    return statistics.median(repeat(lambda: timed(call), seconds))


def repeat(measure: Callable[[], float], seconds: float) -> list[float]:
    """Calls `measure` for so many seconds, at least MIN_REPEATS times; returns its results."""
    values: list[float] = []
    until = time.perf_counter() + seconds
    while len(values) < MIN_REPEATS or time.perf_counter() < until:
        values.append(measure())
    return values


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _gemm(kernels: Kernels, width: int, rows: int) -> tuple[Callable[[], object], int]:
    """Returns a function that calls one bfloat16 linear in cache GEMM_CALLS times, and its floating point
    operations."""
    linear = kernels.pack_linear(torch.randn(width, width).bfloat16())
    x, y = torch.randn(rows, width).bfloat16(), torch.empty(rows, width, dtype=torch.bfloat16)

    def multiply() -> None:
        for _ in range(GEMM_CALLS):
            kernels.linear(linear, x, y, Epilogue.STORE)

    return multiply, GEMM_CALLS * 2 * rows * width * width
