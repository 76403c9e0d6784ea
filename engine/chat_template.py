"""Chat templates: programs of a model or an adapter that make a text of a conversation. Runs them, in a sandbox.

A template can be a stranger's, and all requests wait while it runs: it is stopped when it takes too long.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from types import FrameType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 1.0  # of this thread's work; a long conversation takes some milliseconds
TEMPLATE_CODE = "<template>"  # what Jinja calls the file of compiled code


def check_template(source: str) -> None:
    """Raises ValueError for what is no program."""
    try:
        _compile(source)
    except TemplateError as error:
        raise ValueError(f"the chat template is not valid: {error}") from error


def render_template(source: str, /, **variables: Any) -> str:
    """Raises whatever the program raises, and TimeoutError."""
    template = _compile(source)
    with _stopped_after(MAX_SECONDS):
        return str(template.render(**variables))


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Looks at the clock at every line of a template's code: a loop of any kind comes back to a line."""
    deadline = time.thread_time() + seconds

    def on_line(_: FrameType, __: str, ___: Any) -> Any:
        if time.thread_time() > deadline:
            raise TimeoutError(f"it runs for more than {seconds:g} s")
        return on_line

    def on_call(frame: FrameType, _: str, __: Any) -> Any:
        return on_line if frame.f_code.co_filename == TEMPLATE_CODE else None

    tracer = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(tracer)


@lru_cache(maxsize=64)  # many adapters have one template, and one that is used is used again
def _compile(template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # Jinja's own escapes HTML.
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False} | options)
    return environment.from_string(template)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; what is inside stands as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise ValueError(message)
