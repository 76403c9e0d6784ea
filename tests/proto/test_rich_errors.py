"""Status details, as Google's own messages have them."""

import pytest
from google.rpc import status_pb2

from blora.proto.rich_errors import (
    KEY,
    ErrorDetails,
    bad_request,
    details_in,
    details_of,
    error_info,
    retry_info,
    status,
)


def test_retry_info_is_read_from_the_bytes_that_other_servers_write() -> None:
    other = b"\x0a\x05other\x12\x01\xff"
    info = b"\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12\x0a\x0a\x08\x08\x02\x10\x80\xca\xb5\xee\x01"
    details = b"".join(b"\x1a" + bytes([len(part)]) + part for part in (other, info))
    assert details_in([("x", "y"), (KEY, b"\x08\x08\x12\x02no" + details)]) == ErrorDetails(retry_after=2.5)


@pytest.mark.parametrize("packed", [b"", b"\x08\x08", b"\xff\xff", b"\x1a\x03\x0a\x05x"])
def test_what_cannot_be_read_says_nothing(packed: bytes) -> None:
    assert details_in([(KEY, packed)]) == ErrorDetails() == details_in(None)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1.0, 2.5, 29.999, 1e6])
def test_what_is_written_is_read(seconds: float) -> None:
    said = [error_info("QUEUE_FULL"), bad_request("sampling.n", "é" * 1000), retry_info(seconds)]
    packed = status(8, "é" * 300, said).SerializeToString()
    found = details_in([(KEY, packed)])
    assert found.reason == "QUEUE_FULL" and found.retry_after == pytest.approx(seconds)
    assert found.violations == {"sampling.n": "é" * 200}  # 400 bytes
    assert details_of(status_pb2.Status.FromString(packed)) == found
