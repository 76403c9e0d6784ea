"""The page of errors: the one table from typed errors to gRPC status codes."""

from collections.abc import Iterator

from blora.engine import errors
from blora.engine.server.http.errors import HTTP_STATUS, OWN_STATUS
from blora.engine.server.status import STATUS_CODES

from .markdown import code, one_line, page, prose, table

# Codes of gRPC itself, and of errors outside the table.
OTHERS = (
    ("CANCELLED", "The client cancelled the call or lost its connection. The request ends and frees its memory."),
    ("DEADLINE_EXCEEDED", "The deadline of the call has passed. The request ends and frees its memory."),
    ("UNIMPLEMENTED", "The server has no such service or method."),
    ("INTERNAL", "A fault of the server. Its log has the text."),
)


def make() -> str:
    return page(
        "Errors",
        "`engine/errors.py` and `engine/server/status.py`",
        "In process, blora raises these types of `blora.engine`. Over gRPC, a client receives the status code, with "
        "the same text. Its status details have a `google.rpc.ErrorInfo`, whose reason is the error's name, such as "
        "`INVALID_REQUEST`, and a `google.rpc.BadRequest` with the field that is wrong; "
        "`blora.proto.rich_errors.details_of` reads them. All checks of a request come before any allocation for it.",
        "Over HTTP, it receives the status beside it, in an error of OpenAI's API. MessageTooLarge has a status of "
        "HTTP's own.",
        table(("error", "status code", "HTTP", "meaning"), _rows()),
        "If all samples of a request fail, the request fails with `INTERNAL` and the first reason. A sample that fails "
        "beside others ends with the `finish_reason` `error`.",
        "## Other status codes",
        table(("status code", "when"), ((code(name), text) for name, text in OTHERS)),
    )


def _rows() -> Iterator[tuple[str, str, str, str]]:
    for name in errors.__all__:
        error = getattr(errors, name)
        status = next((STATUS_CODES[kind] for kind in error.__mro__ if kind in STATUS_CODES), None)
        http = "" if status is None else str(OWN_STATUS.get(error, HTTP_STATUS[status]))
        yield code(name), "" if status is None else code(status.name), http, prose(one_line(error.__doc__ or ""))
