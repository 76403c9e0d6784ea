"""The interfaces of a device: streams, events, graphs and memory of one GPU. `cuda/device.py` implements them.

Launched work runs on the current stream, in order. The current stream is `compute`, or another one inside `use`. Only
`Stream.wait` orders work between streams, and only `synchronize` between a stream and the host.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
Result = TypeVar("Result")


class Event(Protocol):
    """A point in a stream."""

    def is_done(self) -> bool:
        """Returns whether all work launched before this point has run. Does not wait."""

    def synchronize(self) -> None:
        """Makes the host wait until all work launched before this point has run."""


class Stream(Protocol):
    def record(self) -> Event:
        """Returns the point after all work launched on this stream so far."""

    def wait(self, event: Event) -> None:
        """Makes all work launched on this stream from now on run after the event. The host does not wait."""


class Graph(Protocol):
    def replay(self) -> None:
        """Launches the captured work on the current stream, on the tensors of the capture."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of the whole GPU in bytes, that of other processes included."""

    free: int
    total: int

    @property
    def taken(self) -> int:
        return self.total - self.free


class Device(Protocol):
    torch_device: torch.device
    compute: Stream  # the stream of the step

    def new_stream(self) -> Stream: ...

    def use(self, stream: Stream) -> AbstractContextManager[None]:
        """Makes this stream the current one inside `with`."""

    def pinned(self, *shape: int) -> Tensor:
        """Returns a uint8 tensor of pinned host memory. The host does not wait for a `copy` from it."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Launches a copy between tensors of the same shape and dtype. source: pinned; it must keep its content until
        the copy has run."""

    def send(self, *parts: Array) -> Sequence[Tensor]:
        """Launches copies of host arrays, which may change as soon as this returns. Returns tensors of the device with
        their shapes and dtypes."""

    def capture(self, run: Callable[[], Result], beside: Graph | None = None) -> tuple[Graph, Result]:
        """Runs `run` once, for things that are only made the first time, then captures it. Returns the graph and the
        result of `run`, which each replay writes again. beside: a graph whose memory the new one shares; the result of
        one is then valid until another is replayed."""

    def synchronize(self) -> None:
        """Makes the host wait for all streams."""

    def memory(self) -> DeviceMemory: ...

    def measure_peak(self, run: Callable[[], object]) -> int:
        """Runs `run`; returns the most bytes that it took at any time, beyond those held before."""

    def describe(self) -> str:
        """Returns the name and the capability of the GPU."""
