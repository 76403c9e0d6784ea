"""RetryInfo, as Google's own messages have it."""

import pytest

from blora.proto.retry_info import retry_after, status_details


def test_retry_info_is_read_from_the_details() -> None:
    other = b"\x0a\x05other\x12\x01\xff"
    info = b"\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12\x0a\x0a\x08\x08\x02\x10\x80\xca\xb5\xee\x01"
    details = b"".join(b"\x1a" + bytes([len(part)]) + part for part in (other, info))
    assert retry_after([("x", "y"), ("grpc-status-details-bin", b"\x08\x08\x12\x02no" + details)]) == 2.5
    assert retry_after([("grpc-status-details-bin", b"\x08\x08")]) is None


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1.0, 2.5, 29.999, 1e6])
def test_what_is_written_is_read(seconds: float) -> None:
    details = status_details(8, "é" * 300, seconds)
    assert retry_after([("grpc-status-details-bin", details)]) == pytest.approx(seconds)


def test_the_bytes_are_those_of_googles_messages() -> None:
    """As googleapis-common-protos writes the same values."""
    assert status_details(8, "no", 2.5) == (
        b"\x08\x08\x12\x02no\x1a6"
        b"\n(type.googleapis.com/google.rpc.RetryInfo\x12\n\n\x08\x08\x02\x10\x80\xca\xb5\xee\x01"
    )
