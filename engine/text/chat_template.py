"""Chat templates: programs of a model or an adapter that make a text of a conversation. Runs them, in a sandbox.

A template can be a stranger's, and all requests wait while it runs: it is stopped when it takes too long, and
when it makes too much. Before, where nobody waits, `check_template` finds out what it takes to prepare.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from .template_sandbox import TemplateSandbox, budget

logger = logging.getLogger(__name__)
MAX_SECONDS = 1.0  # of this thread's work; a thousand messages take a tenth
SECONDS_AT_LEAST, SECONDS_PER_MESSAGE = 0.1, 0.01  # a short conversation may take no longer than that
MAX_COMPILE_SECONDS = 0.2  # 20 KB, more than any model's, take 0.1 s
MAX_CHECK_SECONDS = 2.0  # several times as long, because the clock is looked at
TEMPLATE_CODE = "<template>"  # what Jinja calls the file of compiled code
GREETING = ({"role": "user", "content": "Hello."},)


def check_template(source: str) -> None:
    """Raises ValueError for what is no program, takes too long to become one, or does not end when it is greeted. May
    take seconds of work to find out."""
    try:
        with _stopped_after(MAX_CHECK_SECONDS), budget():
            _compile.__wrapped__(source)
        started = time.thread_time()
        _compile(source)
        seconds = time.thread_time() - started
    except Exception as error:  # of Jinja's parser or Python's, which limits how deep blocks may stand in each other
        raise ValueError(f"the chat template is not valid: {error}") from error
    if seconds > MAX_COMPILE_SECONDS:
        raise ValueError(f"the chat template is not valid: it takes more than {MAX_COMPILE_SECONDS:g} s to prepare")
    try:
        render_template(source, messages=GREETING, tools=None, documents=None, add_generation_prompt=True)
    except (TimeoutError, MemoryError) as error:
        raise ValueError(f"the chat template does not come to its end: {error}") from error
    except Exception:  # it may want more of a conversation
        logger.debug("a chat template refuses a greeting", exc_info=True)


def render_template(source: str, /, **variables: Any) -> str:
    """Raises whatever the program raises, and TimeoutError, and MemoryError for more than `budget` allows. A stranger's
    program has to be checked before."""
    template = _compile(source)
    seconds = min(SECONDS_AT_LEAST + SECONDS_PER_MESSAGE * len(variables.get("messages", ())), MAX_SECONDS)
    with _stopped_after(seconds), budget():
        return str(template.render(**variables))


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Looks at the clock at every call and at every line of a template's code: a loop of any kind comes back to one."""
    deadline = time.thread_time() + seconds

    def on_line(frame: FrameType, _: str, __: Any) -> Any:
        # Of somebody's garbage that is collected just now: there it would be lost, and nobody watch any more.
        is_destructor = frame.f_code.co_name == "__del__"
        if time.thread_time() > deadline and not is_destructor:
            raise TimeoutError(f"it runs for more than {seconds:g} s")
        return on_line

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        on_line(frame, event, argument)
        return on_line if frame.f_code.co_filename == TEMPLATE_CODE else None

    tracer = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(tracer)


@lru_cache(maxsize=64)  # many adapters have one template, and one that is used is used again
def _compile(template: str) -> Any:
    extensions = ["jinja2.ext.loopcontrols", _Generation]
    sandbox = TemplateSandbox(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    with budget():
        return sandbox.from_string(template)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; what is inside stands as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
