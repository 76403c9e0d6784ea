"""Errors as OpenAI's API has them: a status of HTTP and a body. Both follow from the table of gRPC's codes."""

import math
from collections.abc import Mapping
from typing import Any

import grpc
import msgspec

from ...errors import AdapterNotFound, InvalidRequest, MessageTooLarge, QueueFull
from ..status import status_of

HTTP_STATUS: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.DEADLINE_EXCEEDED: 408,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
}
# HTTP has a status of its own for what gRPC knows as an exhausted resource; to try again would help nobody.
OWN_STATUS: Mapping[type[Exception], int] = {MessageTooLarge: 413}

TYPES: Mapping[int, str] = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}


def http_status(error: Exception) -> tuple[int, str]:
    """Returns the status and the text for a client. Logs an error that is not in the table."""
    code, text = status_of(error)
    return OWN_STATUS.get(type(error), HTTP_STATUS[code]), text


def error_body(status: int, text: str, parameter: str | None = None) -> bytes:
    kind = TYPES.get(status, "InternalServerError")
    told: dict[str, Any] = {"message": text, "type": kind, "param": parameter, "code": status}
    return msgspec.json.encode({"error": told})


def answer_to(error: Exception) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Returns status, body and headers of the answer to a request that failed."""
    status, text = http_status(error)
    return status, error_body(status, text, parameter_of(error)), _retry_headers(error)


def parameter_of(error: Exception) -> str | None:
    """Returns the field of a request that is to be changed."""
    if isinstance(error, InvalidRequest):
        return error.field
    return "model" if isinstance(error, AdapterNotFound) else None


def _retry_headers(error: Exception) -> list[tuple[bytes, bytes]]:
    """The header of HTTP, in whole seconds, and that of OpenAI's clients, which is exact."""
    if not isinstance(error, QueueFull) or error.retry_after is None:
        return []
    milliseconds = str(math.ceil(error.retry_after * 1e3))
    return [
        (b"retry-after", str(math.ceil(error.retry_after)).encode()),
        (b"retry-after-ms", milliseconds.encode()),
    ]
