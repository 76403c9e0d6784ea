"""A process: a shard of backend="cuda" that is not the first, on a recording device and a fake FlashInfer."""

from fake_flashinfer import FakeFlashInfer
from recording_device import RecordingDevice

from blora.engine.cuda import backend as cuda_backend
from blora.engine.processes import shard


def main() -> None:
    device = RecordingDevice()
    flashinfer = FakeFlashInfer(launch=device.kernel)
    cuda_backend.load_flashinfer = lambda: flashinfer
    cuda_backend.open_device = lambda _=0: device
    shard.main()


if __name__ == "__main__":
    main()
