"""CudaDevice: streams, events, graphs and memory of one GPU. No other file names torch.cuda.

This makes all ordering observable: tests replace the device with one that records every launch, event and wait, and
that runs on a machine without a GPU.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..errors import EngineStartError
from ..step.device import Array, DeviceMemory, Event, Graph, Result, Stream

LEAST_CAPABILITY = (8, 0)  # Ampere: the first with bfloat16; our kernels are compiled and measured for it and later


class CudaEvent:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def is_done(self) -> bool:
        return bool(self.event.query())

    def synchronize(self) -> None:
        self.event.synchronize()


class CudaStream:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def record(self) -> CudaEvent:
        event = torch.cuda.Event()  # without timing: timing would make waiting slower
        event.record(self.stream)
        return CudaEvent(event)

    def wait(self, event: Event) -> None:
        if not isinstance(event, CudaEvent):
            raise TypeError(f"event: {type(event).__name__} belongs to another kind of device")
        self.stream.wait_event(event.event)


class CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self.graph = graph

    def replay(self) -> None:
        self.graph.replay()


def has_gpu() -> bool:
    return torch.cuda.is_available()


class CudaDevice:
    """The device of a real GPU. It has not run yet: it was written on a machine without a GPU."""

    def __init__(self, index: int = 0) -> None:
        """Raises EngineStartError if there is no such GPU, or if it is too old."""
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise EngineStartError(f"backend: torch {torch.__version__} finds no GPU {index}")
        if torch.cuda.get_device_capability(index) < LEAST_CAPABILITY:
            name = torch.cuda.get_device_name(index)
            raise EngineStartError("backend: {} is older than compute capability {}.{}".format(name, *LEAST_CAPABILITY))
        torch.cuda.set_device(index)
        self.torch_device = torch.device("cuda", index)
        self.compute: Stream = CudaStream(torch.cuda.current_stream())
        self._capture_stream = torch.cuda.Stream()  # graphs that share memory have to share their stream

    def new_stream(self) -> CudaStream:
        return CudaStream(torch.cuda.Stream())

    @contextmanager
    def use(self, stream: Stream) -> Iterator[None]:
        if not isinstance(stream, CudaStream):
            raise TypeError(f"stream: {type(stream).__name__} belongs to another kind of device")
        with torch.cuda.stream(stream.stream):
            yield

    def pinned(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def send(self, *parts: Array) -> Sequence[Tensor]:
        # The caching allocator reuses pinned memory only after the copies from it have run.
        return [
            torch.from_numpy(part).pin_memory().to(self.torch_device, non_blocking=True) for part in map(_owned, parts)
        ]

    def capture(self, run: Callable[[], Result], beside: Graph | None = None) -> tuple[CudaGraph, Result]:
        if beside is not None and not isinstance(beside, CudaGraph):
            raise TypeError(f"beside: {type(beside).__name__} belongs to another kind of device")
        self.synchronize()
        with torch.cuda.stream(self._capture_stream):
            run()  # Triton compiles and cuBLAS allocates its workspace: neither can be captured
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        memory = None if beside is None else beside.graph.pool()
        with torch.cuda.graph(graph, pool=memory, stream=self._capture_stream):
            result = run()
        return CudaGraph(graph), result

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def memory(self) -> DeviceMemory:
        self.synchronize()
        gc.collect()  # frees dropped tensors that are still part of a cycle
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return DeviceMemory(free, total)

    def measure_peak(self, run: Callable[[], object]) -> int:
        self.memory()  # returns cached memory to the driver
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()  # all memory that torch took from the driver, more than its tensors fill
        run()
        self.synchronize()
        return int(torch.cuda.max_memory_reserved()) - before

    def describe(self) -> str:
        properties = torch.cuda.get_device_properties(self.torch_device)
        return f"{properties.name}, sm{properties.major}{properties.minor}, {properties.total_memory} bytes"


def _owned(part: Array) -> Array:
    return np.ascontiguousarray(part)
