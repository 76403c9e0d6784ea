"""Status: the one table from typed errors to gRPC status codes, and the text of each for a client. Knows no message."""

import logging
import math
import re
from collections.abc import Iterator

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from blora.proto import rich_errors

from ..errors import (
    AdapterNotFound,
    AdapterRejected,
    AdapterSetAside,
    AdapterTooLarge,
    DeadlineExceeded,
    EngineBroken,
    EngineFault,
    EngineUnavailable,
    InvalidRequest,
    LimitReached,
    MessageTooLarge,
    PermissionDenied,
    QueueFull,
    ReaderTooSlow,
    Unauthenticated,
    WrongEventLoop,
    WrongProcess,
)

logger = logging.getLogger(__name__)


class RequestFailed(RuntimeError):
    """All samples of a request failed. The message says why, and may be shown to a client."""


STATUS_CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    LimitReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    MessageTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    AdapterNotFound: grpc.StatusCode.NOT_FOUND,
    AdapterRejected: grpc.StatusCode.FAILED_PRECONDITION,
    AdapterSetAside: grpc.StatusCode.FAILED_PRECONDITION,
    AdapterTooLarge: grpc.StatusCode.FAILED_PRECONDITION,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ReaderTooSlow: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    EngineUnavailable: grpc.StatusCode.UNAVAILABLE,
    EngineBroken: grpc.StatusCode.UNAVAILABLE,
    EngineFault: grpc.StatusCode.INTERNAL,
    WrongProcess: grpc.StatusCode.INTERNAL,  # a mistake of the program that made the server
    WrongEventLoop: grpc.StatusCode.INTERNAL,
    RequestFailed: grpc.StatusCode.INTERNAL,
}

# The text of an unexpected error can hold paths, addresses and prompts, so it goes to the log and not to the client.
UNEXPECTED = "internal error; the server's log says more"

PUSHBACK_KEY, NEVER = "grpc-retry-pushback-ms", "-1"  # gRPC's own: a number below 0 ends a channel's retries

# The text travels in the trailers twice: percent-encoded (up to three bytes for one), and in the status details in
# base64. Clients accept 8 KiB of trailers; for a longer text they would report that limit instead of the error.
MAX_DETAILS_BYTES = 1500


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Returns the code and the text for a client. Logs an error that is not in the table, with its traceback."""
    for kind in type(error).__mro__:
        if kind in STATUS_CODES:
            return STATUS_CODES[kind], _shortened(str(error))
    logger.error("unexpected error in an RPC", exc_info=error)
    return grpc.StatusCode.INTERNAL, UNEXPECTED


def status_message(error: Exception) -> status_pb2.Status:
    """Returns what a call that failed so would end with."""
    return rich_status(error, *status_of(error))


def rich_status(error: Exception, code: grpc.StatusCode, text: str) -> status_pb2.Status:
    """Returns code and text as a message, with what programs read: the reason, the field that is wrong, the time after
    which to try again."""
    return rich_errors.status(code.value[0], text, _details_of(error))


def trailers(error: Exception, code: grpc.StatusCode, text: str) -> tuple[tuple[str, str | bytes], ...]:
    """Returns the trailing metadata of a failed call: the status details, and gRPC's own number for when to try again,
    which channels obey that retry by a service config."""
    details = ((rich_errors.KEY, rich_status(error, code, text).SerializeToString()),)
    if code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return details
    seconds = error.retry_after if isinstance(error, QueueFull) else None
    return (*details, (PUSHBACK_KEY, NEVER if seconds is None else str(math.ceil(seconds * 1e3))))


def reason_of(error: Exception) -> str:
    """Returns the name of the error's type in the table, such as "QUEUE_FULL": programs may rely on it."""
    kind = next((kind for kind in type(error).__mro__ if kind in STATUS_CODES), None)
    return "INTERNAL" if kind is None else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper()


def _details_of(error: Exception) -> Iterator[Message]:
    yield rich_errors.error_info(reason_of(error))
    if isinstance(error, InvalidRequest):
        yield rich_errors.bad_request(error.field, error.reason)
    if isinstance(error, QueueFull) and error.retry_after is not None:
        yield rich_errors.retry_info(error.retry_after)


def _shortened(text: str) -> str:
    return text.encode(errors="replace")[:MAX_DETAILS_BYTES].decode(errors="ignore")
