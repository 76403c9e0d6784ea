"""The recording device finds errors of order and capture, and replays a graph as a GPU would."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from recording_device import CaptureError, OrderError, RecordingDevice, check_order


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """Runs in inference mode, as the engine does."""
    with torch.inference_mode():
        yield


@pytest.fixture
def device() -> RecordingDevice:
    device = RecordingDevice()
    device.watch(torch.zeros(8, 16, dtype=torch.uint8))
    return device


def copy_page(device: RecordingDevice, pages: torch.Tensor, page: int, value: int) -> torch.Tensor:
    source = device.pinned(16).fill_(value)
    device.copy(pages[page], source)
    return source


def test_a_read_that_waits_is_in_order(device: RecordingDevice) -> None:
    side = device.new_stream()
    device.note("kernel", reads={3})
    side.wait(device.compute.record())
    with device.use(side):
        copy_page(device, device.pages, 3, 7)
    device.compute.wait(side.record())
    device.note("kernel", reads={3})
    check_order(device.log)
    assert (device.pages[3] == 7).all()


def overwrite_without_waiting(device: RecordingDevice) -> None:
    side = device.new_stream()
    device.note("kernel", reads={3})
    with device.use(side):
        copy_page(device, device.pages, 3, 7)


def read_without_waiting(device: RecordingDevice) -> None:
    with device.use(device.new_stream()):
        copy_page(device, device.pages, 3, 7)
    device.note("kernel", reads={3})


def wait_for_an_event_that_comes_before(device: RecordingDevice) -> None:
    side = device.new_stream()
    event = side.record()
    with device.use(side):
        copy_page(device, device.pages, 3, 7)
    device.compute.wait(event)
    device.note("kernel", reads={3})


def wait_before_the_read(device: RecordingDevice) -> None:
    side = device.new_stream()
    side.wait(device.compute.record())
    device.note("kernel", reads={3})
    with device.use(side):
        copy_page(device, device.pages, 3, 7)


def write_beside_a_copy(device: RecordingDevice) -> None:
    with device.use(device.new_stream()):
        copy_page(device, device.pages, 3, 7)
    device.note("kernel", writes={3})


@pytest.mark.parametrize(
    "run",
    [
        overwrite_without_waiting,
        read_without_waiting,
        wait_for_an_event_that_comes_before,
        wait_before_the_read,
        write_beside_a_copy,
    ],
)
def test_what_is_in_no_order_is_found(run: Callable[[RecordingDevice], None], device: RecordingDevice) -> None:
    run(device)
    with pytest.raises(OrderError, match="page 3"):
        check_order(device.log)


def test_what_the_host_waited_for_is_in_order(device: RecordingDevice) -> None:
    side = device.new_stream()
    with device.use(side):
        copy_page(device, device.pages, 3, 7)
    event = side.record()
    assert not event.is_done()
    event.synchronize()
    assert event.is_done()
    device.note("kernel", reads={3})
    check_order(device.log)


def test_a_copy_beside_runs_as_late_as_it_may(device: RecordingDevice) -> None:
    pages, side = device.pages, device.new_stream()
    with device.use(side):
        source = copy_page(device, pages, 3, 7)
    assert (pages[3] == 0xFF).all() and (pages[2] == 0).all()
    source.fill_(9)  # too early: the copy has not read it yet
    device.compute.wait(side.record())
    assert (pages[3] == 9).all()


def test_a_replay_computes_with_the_tensors_of_the_capture(device: RecordingDevice) -> None:
    x, y, factor = torch.ones(4), torch.zeros(4), 2.0

    def run() -> torch.Tensor:
        z = (x * factor).to(torch.float32)
        y[1:].add_(z[1:])
        device.kernel(lambda: z.add_(float(y.sum())))
        return z.view(2, 2)

    graph, z = device.capture(run)
    factor = 100.0  # a graph keeps the value of its capture
    address = z.data_ptr()
    x.fill_(3.0)
    y.zero_()
    graph.replay()
    assert z.tolist() == [[24, 24], [24, 24]] and z.data_ptr() == address
    graph.replay()
    assert y.tolist() == [0, 12, 12, 12]
    assert graph.num_replays == 2


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x[torch.tensor([0])],
        lambda x: x.nonzero(),
    ],
)
def test_what_a_gpu_does_not_capture_is_refused(run: Callable[[torch.Tensor], object], device: RecordingDevice) -> None:
    with pytest.raises(CaptureError):
        device.capture(lambda: run(torch.ones(3)))
    with pytest.raises(CaptureError):
        device.capture(lambda: device.send(np.ones(1)))


def test_the_peak_is_what_was_there_at_a_time(device: RecordingDevice) -> None:
    def run() -> None:
        for _ in range(3):
            x = torch.zeros(1000)
            y = x.view(10, 100)[2:]
            del x
            y = y + 1  # the view kept all of x until here
        torch.zeros(500)

    assert device.measure_peak(run) == 4 * (1000 + 800)
