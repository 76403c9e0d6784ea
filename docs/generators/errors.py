"""The page of errors: the one table from typed errors to gRPC status codes."""

from collections.abc import Iterator

from blora.engine import errors
from blora.engine.server.status import STATUS_CODES

from .markdown import code, one_line, page, prose, table

# What the standard says, and the server does not choose.
OTHERS = (
    ("CANCELLED", "The client went away or cancelled the call; the request ends and frees what it holds."),
    ("DEADLINE_EXCEEDED", "The call's deadline has passed; the request ends and frees what it holds."),
    ("UNIMPLEMENTED", "The server has no such service or method."),
    ("INTERNAL", "Any error that is not in the table above: a fault of the server. Its log has the text."),
)


def make() -> str:
    return page(
        "Errors",
        "`engine/errors.py` and `engine/server/status.py`",
        "Python callers meet these types, of `blora.engine`; clients meet their status codes, and the same text in the "
        "status details. An unknown name never falls back to the base model. Everything that is wrong with a request "
        "is found before anything is allocated for it.",
        table(("error", "status code", "what it means"), _rows()),
        "A request of several samples fails as a whole where all of them failed: `INTERNAL`, with the first reason. "
        "Where only some did, each of these ends with `finish_reason` `error`.",
        "## Other status codes",
        table(("status code", "when"), ((code(name), text) for name, text in OTHERS)),
    )


def _rows() -> Iterator[tuple[str, str, str]]:
    for name in errors.__all__:
        error = getattr(errors, name)
        status = next((STATUS_CODES[kind].name for kind in error.__mro__ if kind in STATUS_CODES), None)
        yield code(name), "" if status is None else code(status), prose(one_line(error.__doc__ or ""))
