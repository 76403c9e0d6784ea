"""CudaDevice without a GPU: every call into torch.cuda binds to an existing function, in the intended order."""

from typing import Any
from unittest.mock import MagicMock, create_autospec

import numpy as np
import pytest
import torch
from recording_device import RecordingDevice

from blora.engine import EngineStartError
from blora.engine.cuda.device import CudaDevice
from blora.engine.step.device import Device

FUNCTIONS = (
    "set_device",
    "current_stream",
    "stream",
    "synchronize",
    "empty_cache",
    "mem_get_info",
    "reset_peak_memory_stats",
    "memory_reserved",
    "max_memory_reserved",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "graph",
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A stand-in for torch.cuda with its signatures."""
    calls = MagicMock()
    for name in FUNCTIONS:
        calls.attach_mock(create_autospec(getattr(torch.cuda, name)), name)
        monkeypatch.setattr(torch.cuda, name, getattr(calls, name))
    for name in ("Stream", "Event", "CUDAGraph"):
        calls.attach_mock(MagicMock(), name)
        monkeypatch.setattr(torch.cuda, name, getattr(calls, name))
    calls.get_device_capability.return_value = (8, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return calls


def names(calls: MagicMock, first: int = 0) -> list[str]:
    return [call[0] for call in calls.mock_calls[first:]]


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(EngineStartError, match="finds no GPU"):
        CudaDevice()


def test_an_old_gpu_is_refused_before_anything_is_compiled_for_it(cuda: MagicMock) -> None:
    cuda.get_device_capability.return_value, cuda.get_device_name.return_value = (7, 5), "Tesla T4"
    with pytest.raises(EngineStartError, match=r"Tesla T4 is older than compute capability 8\.0"):
        CudaDevice()
    assert "set_device" not in names(cuda)


def test_a_capture_is_warmed_up_on_the_stream_of_the_capture(cuda: MagicMock) -> None:
    device = CudaDevice()
    first, runs = len(names(cuda)), []
    graph, num_calls = device.capture(lambda: runs.append(names(cuda)) or len(names(cuda)))
    assert len(runs) == 2 and "CUDAGraph" not in runs[0] and "CUDAGraph" in runs[1] and num_calls == len(runs[1])
    assert names(cuda, first)[0] == "synchronize"
    (warm_up,), (_, options) = cuda.stream.call_args.args, cuda.graph.call_args
    assert options["stream"] is warm_up and options["pool"] is None
    device.capture(lambda: None, beside=graph)
    assert cuda.graph.call_args.kwargs["pool"] is cuda.CUDAGraph().pool()
    graph.replay()
    assert names(cuda)[-1] == "CUDAGraph().replay"


def test_events_order_streams(cuda: MagicMock) -> None:
    device = CudaDevice()
    side = device.new_stream()
    event = device.compute.record()
    side.wait(event)
    event.synchronize()
    assert event.is_done()
    cuda.Event().record.assert_called_once_with(cuda.current_stream())
    cuda.Stream().wait_event.assert_called_once_with(cuda.Event())
    with device.use(side):
        pass
    cuda.stream.assert_called_once_with(cuda.Stream())


def test_memory_is_what_the_driver_says_after_the_cache_was_given_back(cuda: MagicMock) -> None:
    cuda.mem_get_info.return_value = (3, 7)
    device = CudaDevice()
    assert (device.memory().free, device.memory().total) == (3, 7)
    assert names(cuda).index("empty_cache") < names(cuda).index("mem_get_info")
    cuda.memory_reserved.return_value, cuda.max_memory_reserved.return_value = 100, 150
    first = len(names(cuda))
    assert device.measure_peak(cuda.run) == 50
    assert names(cuda, first)[-5:] == [
        "reset_peak_memory_stats", "memory_reserved", "run", "synchronize", "max_memory_reserved"
    ]  # fmt: skip


@pytest.mark.usefixtures("cuda")
def test_both_devices_have_the_same_methods() -> None:
    public = {name for name in vars(Device) if not name.startswith("_")}
    for device in (CudaDevice(), RecordingDevice()):
        missing = {name for name in public if not hasattr(device, name)}
        assert not missing and hasattr(device, "compute") and hasattr(device, "torch_device")


def test_what_is_sent_may_change_at_once() -> None:
    device, array = RecordingDevice(), np.arange(3)
    (tensor,) = device.send(array)
    array[:] = 7
    assert tensor.tolist() == [0, 1, 2]


@pytest.mark.usefixtures("cuda")
def test_a_stream_of_another_device_is_refused() -> None:
    device: Any = CudaDevice()
    with pytest.raises(TypeError), device.use(RecordingDevice().compute):
        pass
    with pytest.raises(TypeError):
        device.compute.wait(RecordingDevice().compute.record())
