"""Rich errors: what a refusal says beside its code and its text, in the status details of a call (google.rpc.Status).

The server packs with this module and clients read with it. The messages are Google's own, which any language has.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

KEY = "grpc-status-details-bin"  # of the trailing metadata
DOMAIN = "blora"
NANOS = 1_000_000_000
# Clients accept 8 KiB of trailers, in which the error's text stands twice besides.
MAX_NAME_BYTES, MAX_DESCRIPTION_BYTES = 100, 400

Trailers = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What the server tells of a refusal beside its code and its text."""

    reason: str = ""  # such as "QUEUE_FULL"; programs may rely on it
    violations: Mapping[str, str] = field(default_factory=dict)  # field of the request -> what is wrong with it
    retry_after: float | None = None  # seconds after which the same request is expected to be accepted


def error_info(reason: str) -> Message:
    info: Message = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    return info


def bad_request(name: str, description: str) -> Message:
    """name: of the field that is wrong."""
    violation = error_details_pb2.BadRequest.FieldViolation(
        field=_shortened(name, MAX_NAME_BYTES), description=_shortened(description, MAX_DESCRIPTION_BYTES)
    )
    bad: Message = error_details_pb2.BadRequest(field_violations=[violation])
    return bad


def _shortened(text: str, num_bytes: int) -> str:
    return text.encode(errors="replace")[:num_bytes].decode(errors="ignore")


def retry_info(seconds: float) -> Message:
    whole, nanos = divmod(round(seconds * NANOS), NANOS)
    info: Message = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=whole, nanos=nanos))
    return info


def status(code: int, message: str, details: Iterable[Message]) -> status_pb2.Status:
    """Clients compare code and message with those of the call, and want the same."""
    made = status_pb2.Status(code=code, message=message)
    for detail in details:
        made.details.add().Pack(detail)
    return made


def details_of(error: Any) -> ErrorDetails:
    """Returns the details of a failed call: a grpc.RpcError, or a google.rpc.Status."""
    if isinstance(error, status_pb2.Status):
        return _details(error)
    return details_in(error.trailing_metadata())


def details_in(trailers: Trailers | None) -> ErrorDetails:
    """Returns the details in a call's trailing metadata; empty ones where there are none that can be read."""
    packed = next((value for key, value in trailers or () if key == KEY and isinstance(value, bytes)), b"")
    try:
        return _details(status_pb2.Status.FromString(packed))
    except DecodeError:
        return ErrorDetails()


def _details(found: status_pb2.Status) -> ErrorDetails:
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in found.details:
        for message in (info, bad, retry):
            detail.Unpack(message)  # does nothing if it is another one
    delay = retry.retry_delay
    return ErrorDetails(
        reason=info.reason,
        violations={violation.field: violation.description for violation in bad.field_violations},
        retry_after=delay.seconds + delay.nanos / NANOS if retry.HasField("retry_delay") else None,
    )
