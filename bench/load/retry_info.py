"""RetryInfo: how long a refusal asks to wait, read from the status details of a call (google.rpc.Status).

Read by hand: the two messages are not worth a dependency.
"""

from collections.abc import Iterable, Iterator

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration

KEY = "grpc-status-details-bin"
RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
DETAILS, RETRY_DELAY = 3, 1  # fields of Status and of RetryInfo
VARINT, BYTES = 0, 2  # wire types


def retry_after(metadata: Iterable[tuple[str, str | bytes]] | None) -> float | None:
    """Returns the seconds of a call's RetryInfo; None without one."""
    for key, value in metadata or ():
        if key == KEY and isinstance(value, bytes):
            details = (Any.FromString(detail) for number, detail in _fields(value) if number == DETAILS)
            for info in (detail.value for detail in details if detail.type_url == RETRY_INFO):
                for _, delay in (field for field in _fields(info) if field[0] == RETRY_DELAY):
                    duration = Duration.FromString(delay)
                    return duration.seconds + duration.nanos / 1e9
    return None


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields number and bytes of each field that has bytes. Ends at a wire type that neither message has."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        value, place = _varint(message, place)
        if key & 7 == BYTES:
            yield key >> 3, message[place : place + value]
            place += value
        elif key & 7 != VARINT:
            return


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message):
        byte = message[place]
        value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            break
    return value, place
