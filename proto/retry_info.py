"""RetryInfo: how long a refusal asks to wait, in the status details of a call (google.rpc.Status and RetryInfo).

Written and read by hand: two messages are not worth a dependency, and stubs of our own under Google's names would clash
with Google's in one process.
"""

from collections.abc import Iterable, Iterator

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration

KEY = "grpc-status-details-bin"  # of the trailing metadata
RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
CODE, MESSAGE, DETAILS, RETRY_DELAY = 1, 2, 3, 1  # fields of Status and of RetryInfo
VARINT, BYTES = 0, 2  # wire types
NANOS = 1_000_000_000


def status_details(code: int, message: str, seconds: float) -> bytes:
    """Returns a Status with a RetryInfo that asks to wait for so many seconds."""
    whole, nanos = divmod(round(seconds * NANOS), NANOS)
    delay = Duration(seconds=whole, nanos=nanos).SerializeToString()
    info = Any(type_url=RETRY_INFO, value=_bytes_field(RETRY_DELAY, delay)).SerializeToString()
    key = _varint(CODE << 3 | VARINT) + _varint(code)
    return key + _bytes_field(MESSAGE, message.encode()) + _bytes_field(DETAILS, info)


def retry_after(metadata: Iterable[tuple[str, str | bytes]] | None) -> float | None:
    """Returns the seconds of the RetryInfo in a call's trailing metadata; None without one."""
    for key, value in metadata or ():
        if key == KEY and isinstance(value, bytes):
            details = (Any.FromString(detail) for number, detail in _fields(value) if number == DETAILS)
            for info in (detail.value for detail in details if detail.type_url == RETRY_INFO):
                for _, delay in (field for field in _fields(info) if field[0] == RETRY_DELAY):
                    duration = Duration.FromString(delay)
                    return duration.seconds + duration.nanos / NANOS
    return None


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields number and bytes of each field that has bytes. Ends at a wire type that neither message has."""
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        value, place = _read_varint(message, place)
        if key & 7 == BYTES:
            yield key >> 3, message[place : place + value]
            place += value
        elif key & 7 != VARINT:
            return


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message):
        byte = message[place]
        value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            break
    return value, place
