"""The interfaces of a device: streams, events, graphs and memory of one GPU. `cuda/device.py` implements them.

What is launched runs on the current stream, in order; `compute` is the current one unless `use` says otherwise. Between
streams there is no order but what `Stream.wait` makes, and none between a stream and the host but `synchronize`.
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
        """Whether all that was launched before it has run; does not wait."""

    def synchronize(self) -> None:
        """The host waits until all that was launched before it has run."""


class Stream(Protocol):
    def record(self) -> Event:
        """The point behind what was launched on this stream so far."""

    def wait(self, event: Event) -> None:
        """What is launched on this stream from now on runs after the event. The host does not wait."""


class Graph(Protocol):
    def replay(self) -> None:
        """Launches on the current stream what was captured, with the tensors it was captured with."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of the whole GPU, whoever has them."""

    free: int
    total: int

    @property
    def taken(self) -> int:
        return self.total - self.free


class Device(Protocol):
    torch_device: torch.device
    compute: Stream  # the step's

    def new_stream(self) -> Stream: ...

    def use(self, stream: Stream) -> AbstractContextManager[None]:
        """Inside, what is launched goes to this stream."""

    def pinned(self, *shape: int) -> Tensor:
        """uint8 on the host, which `copy` reads without the host waiting for it."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Launches a copy; source, pinned, must keep its content until that has run. Same shape and dtype."""

    def send(self, *parts: Array) -> Sequence[Tensor]:
        """Launches a copy of arrays of the host, which may change at once. Returns tensors of the device with their
        shapes and dtypes."""

    def capture(self, run: Callable[[], Result], beside: Graph | None = None) -> tuple[Graph, Result]:
        """Runs it once for what is only made at the first time, then captures it; what it returns is written by each
        replay. beside: a graph whose memory it shares: what one has returned is valid until another is replayed."""

    def synchronize(self) -> None:
        """The host waits for all streams."""

    def memory(self) -> DeviceMemory: ...

    def measure_peak(self, run: Callable[[], object]) -> int:
        """The most bytes that it took at a time, beside what was held before."""

    def describe(self) -> str:
        """Name and capability of the GPU."""
