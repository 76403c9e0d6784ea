"""RecordingDevice: a GPU's streams, events, graphs and memory in place of engine.cuda.device, on CPU tensors.

Work launched on the compute stream runs at once. A copy on another stream runs as late as the order of streams allows:
until then its target holds NaN, and only then is its source read. So code that does not wait computes with NaN, and
code that changes the source too early copies the wrong bytes. `check_order` finds in the log operations that could run
too early.

A captured graph is a tape of torch's operations and of kernels: a replay runs no Python of the engine, and works on the
tensors of the capture, as a GPU does.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, TypeVar
from weakref import finalize

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from blora.engine.step.device import DeviceMemory

Result = TypeVar("Result")
POISON = 0xFF  # a tensor of these bytes is NaN
# Operations that read a tensor on the host or bring data from it. A GPU refuses to capture them, or captures constants.
HOST_OPERATIONS = {"item", "_local_scalar_dense", "resolve_neg", "lift_fresh", "nonzero", "masked_select", "unique"}


class OrderError(AssertionError):
    """A page is read or written without being ordered after its earlier use."""


class CaptureError(RuntimeError):
    """An operation that cannot be captured."""


# The log.


@dataclass(frozen=True)
class Launch:
    stream: str
    name: str
    reads: frozenset[Hashable]
    writes: frozenset[Hashable]


@dataclass(frozen=True)
class Record:
    stream: str
    event: int


@dataclass(frozen=True)
class Wait:
    stream: str
    event: int


@dataclass(frozen=True)
class HostWait:
    event: int


Entry = Launch | Record | Wait | HostWait


@dataclass
class _Access:
    stream: str
    tick: int
    name: str


@dataclass
class _Uses:
    last_write: _Access | None = None
    reads: list[_Access] = field(default_factory=list)  # reads since the last write


def check_order(log: Iterable[Entry]) -> None:
    """Raises OrderError unless every read of a page happens after the last write of it, and every write after the last
    write and all reads since: in one stream, or through events.

    The clock of a stream holds, for every stream, the last launch that its next launch happens after (vector clocks,
    Mattern 1989).
    """
    clocks: defaultdict[str, Counter[str]] = defaultdict(Counter)
    events: dict[int, Counter[str]] = {}
    host: Counter[str] = Counter()
    pages: defaultdict[Hashable, _Uses] = defaultdict(_Uses)
    for entry in log:
        match entry:
            case Record(stream, event):
                events[event] = Counter(clocks[stream])
            case Wait(stream, event):
                clocks[stream] |= events[event]
            case HostWait(event):
                host |= events[event]
            case Launch(stream, name, reads, writes):
                clock = clocks[stream]
                clock |= host
                clock[stream] += 1
                access = _Access(stream, clock[stream], name)
                for page in sorted(reads | writes, key=repr):
                    uses = pages[page]
                    before = [uses.last_write, *(uses.reads if page in writes else ())]
                    for other in before:
                        if other is not None and clock[other.stream] < other.tick:
                            raise OrderError(f"page {page}: {access} is not ordered after {other}")
                    if page in writes:
                        uses.last_write, uses.reads = access, []
                    else:
                        uses.reads.append(access)


# The device.


class RecordingEvent:
    def __init__(self, stream: "RecordingStream", number: int, position: int) -> None:
        self.stream, self.number = stream, number
        self.position = position  # number of launches of the stream before the event

    def is_done(self) -> bool:
        is_done = self.stream.num_run >= self.position
        if is_done:
            self.stream.device.log.append(HostWait(self.number))
        return is_done

    def synchronize(self) -> None:
        self.stream.run_to(self.position)
        self.stream.device.log.append(HostWait(self.number))


class RecordingStream:
    def __init__(self, device: "RecordingDevice", name: str) -> None:
        self.device, self.name = device, name
        self.num_run = 0
        self._waiting: list[Callable[[], None]] = []

    @property
    def position(self) -> int:
        return self.num_run + len(self._waiting)

    def record(self) -> RecordingEvent:
        event = RecordingEvent(self, next(self.device.numbers), self.position)
        self.device.log.append(Record(self.name, event.number))
        return event

    def wait(self, event: RecordingEvent) -> None:
        """Runs the pending copies that the event covers. The compute stream runs at once, so the copies that it waits
        for have to run now. Other streams wait only for the compute stream, which has run already."""
        assert event.stream is self.device.compute or self is self.device.compute, "no order of side streams is made"
        event.stream.run_to(event.position)
        self.device.log.append(Wait(self.name, event.number))

    def launch(self, run: Callable[[], None]) -> None:
        self._waiting.append(run)
        if self is self.device.compute:
            self.run_to(self.position)

    def run_to(self, position: int) -> None:
        while self.num_run < position:
            self.num_run += 1
            self._waiting.pop(0)()


class RecordingGraph:
    def __init__(self, tape: Sequence[Callable[[], None]], result: Any) -> None:
        """result: the result of the capture, whose memory no other graph may use."""
        self._tape = tape
        self.num_kept_bytes = sum(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1
        for run in self._tape:
            run()


class _Tape(TorchDispatchMode):
    """Records torch's operations with their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Callable[[], None]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op.overloadpacket.__name__ in HOST_OPERATIONS:
            raise CaptureError(f"{op} reads or brings what is on the host")
        result = op(*args, **kwargs)
        self.runs.append(partial(_run_again, partial(op, *args, **kwargs), result, tree_leaves((args, kwargs))))
        return result


def _run_again(run: Callable[[], Any], first: Any, inputs: Sequence[Any]) -> None:
    """Runs an operation again. Its result goes into the memory of the first result, unless it lies in an input
    already."""
    known = {_storage(value) for value in inputs if isinstance(value, Tensor)}
    for before, now in zip(tree_leaves(first), tree_leaves(run()), strict=True):
        if isinstance(before, Tensor) and _storage(before) not in known:
            before.copy_(now)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Meter(TorchDispatchMode):
    """Counts the bytes of storages that operations make and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._tensors: Counter[int] = Counter()  # storage -> number of tensors that keep it

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        known = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and (_storage(value) in self._tensors or _storage(value) not in known):
                self._add(value)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage, num_bytes = _storage(tensor), tensor.untyped_storage().nbytes()
        if not storage:
            return
        if not self._tensors[storage]:
            self._now += num_bytes
            self.peak = max(self.peak, self._now)
        self._tensors[storage] += 1
        finalize(tensor, self._remove, storage, num_bytes)

    def _remove(self, storage: int, num_bytes: int) -> None:
        self._tensors[storage] -= 1
        if not self._tensors[storage]:
            self._now -= num_bytes


class RecordingDevice:
    def __init__(self, total_bytes: int = 1 << 30) -> None:
        """total_bytes: size of its memory, all free at first; `hold` takes some of it."""
        self.torch_device = torch.device("cpu")
        self.log: list[Entry] = []
        self.numbers = count()
        self.compute = RecordingStream(self, "compute")
        self.graphs: list[RecordingGraph] = []
        self._current = self.compute
        self._streams = [self.compute]
        self._total_bytes = self._free_bytes = total_bytes
        self.pages: Tensor | None = None
        self._tape: _Tape | None = None

    # The interface of engine.cuda.device.Device.

    def new_stream(self) -> RecordingStream:
        self._streams.append(RecordingStream(self, f"side {len(self._streams)}"))
        return self._streams[-1]

    @contextmanager
    def use(self, stream: RecordingStream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def pinned(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8)

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert target.shape == source.shape and target.dtype == source.dtype
        self.note("copy", writes=self._pages_of(target))
        if self._current is not self.compute:
            target.fill_(POISON)
        self._current.launch(partial(_copy, target, source))

    def send(self, *parts: np.ndarray) -> list[Tensor]:
        if self._tape is not None:
            raise CaptureError("a graph would send the same integers at every replay")
        return [torch.from_numpy(part.copy()) for part in parts]

    def capture(self, run: Callable[[], Result], beside: RecordingGraph | None = None) -> tuple[RecordingGraph, Result]:
        assert beside is None or beside in self.graphs, "a graph that is gone"
        run()
        self.synchronize()
        self._tape = _Tape()
        try:
            with self._tape:
                result = run()
            self.graphs.append(RecordingGraph(self._tape.runs, result))
        finally:
            self._tape = None
        return self.graphs[-1], result

    def synchronize(self) -> None:
        for stream in self._streams:
            stream.record().synchronize()

    def memory(self) -> DeviceMemory:
        return DeviceMemory(self._free_bytes, self._total_bytes)

    def measure_peak(self, run: Callable[[], object]) -> int:
        meter = _Meter()
        with meter:
            run()
        return meter.peak

    def describe(self) -> str:
        return "a recording device"

    # Methods for tests.

    def hold(self, num_bytes: int) -> None:
        """Takes so many bytes of the memory."""
        self._free_bytes -= num_bytes

    def watch(self, pages: Tensor) -> None:
        """Records copies into this arena. pages: [num_pages, page_bytes]."""
        self.pages = pages

    def note(self, name: str, reads: Iterable[Hashable] = (), writes: Iterable[Hashable] = ()) -> None:
        """Records a launch on the current stream."""
        self.log.append(Launch(self._current.name, name, frozenset(reads), frozenset(writes)))

    def kernel(self, run: Callable[[], Any]) -> Any:
        """Runs a function as one kernel, with all that it does on the host: a graph replays it as a whole."""
        with _disable_current_modes():
            result = run()
        if self._tape is not None:
            self._tape.runs.append(partial(_run_again, run, result, ()))
        return result

    def _pages_of(self, tensor: Tensor) -> range:
        """Returns the pages of the arena that a tensor covers; none if it lies elsewhere."""
        if self.pages is None or _storage(tensor) != _storage(self.pages):
            return range(0)
        page_bytes = self.pages.shape[1]
        first = (tensor.data_ptr() - self.pages.data_ptr()) // page_bytes
        return range(first, first + -(-tensor.numel() * tensor.itemsize // page_bytes))


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)
