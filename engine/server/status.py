"""Status: the one table from typed errors to gRPC status codes, and the text of each for a client. Knows no message."""

import logging
import math

import grpc

from blora.proto import retry_info

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
    QueueFull,
    ReaderTooSlow,
    WrongEventLoop,
    WrongProcess,
)

logger = logging.getLogger(__name__)


class RequestFailed(RuntimeError):
    """All samples of a request failed. The message says why, and may be shown to a client."""


STATUS_CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
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

# The text travels in the trailers, percent-encoded (up to three bytes for one). Clients accept 8 KiB of trailers; for a
# longer text they would report that limit instead of the error.
MAX_DETAILS_BYTES = 2000


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Returns the code and the text for a client. Logs an error that is not in the table, with its traceback."""
    for kind in type(error).__mro__:
        if kind in STATUS_CODES:
            return STATUS_CODES[kind], _shortened(str(error))
    logger.error("unexpected error in an RPC", exc_info=error)
    return grpc.StatusCode.INTERNAL, UNEXPECTED


def retry_metadata(error: Exception, details: str) -> tuple[tuple[str, str | bytes], ...]:
    """Returns the trailing metadata that says when to try again: RetryInfo, which clients read, and gRPC's own number,
    which channels obey that retry by a service config."""
    if not isinstance(error, QueueFull) or error.retry_after is None:
        return ()
    number, _ = grpc.StatusCode.RESOURCE_EXHAUSTED.value
    milliseconds = str(math.ceil(error.retry_after * 1e3))
    return (
        (retry_info.KEY, retry_info.status_details(number, details, error.retry_after)),
        ("grpc-retry-pushback-ms", milliseconds),
    )


def _shortened(text: str) -> str:
    return text.encode(errors="replace")[:MAX_DETAILS_BYTES].decode(errors="ignore")
