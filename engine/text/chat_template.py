"""Chat templates: programs of a model or an adapter that turn a conversation into text. This file runs them in a
sandbox.

A template is untrusted, and all requests wait while it runs: the sandbox stops it when it takes too long or makes too
much text. Before that, in a process that no request waits for, `check_template` measures how long it takes to compile.
"""

import gc
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
MAX_SECONDS = 1.0  # this thread's CPU time for any conversation; a thousand messages take a tenth of it
SECONDS_AT_LEAST, SECONDS_PER_MESSAGE = 0.1, 0.01  # CPU time that a short conversation may take
MAX_COMPILE_SECONDS = 0.2  # a template of 20 KB, larger than any model's, takes 0.1 s
MAX_CHECK_SECONDS = 2.0  # several times as long, because looking at the clock takes time itself
TEMPLATE_CODE = "<template>"  # what Jinja calls the file of compiled code
GREETING = ({"role": "user", "content": "Hello."},)


def check_template(source: str) -> None:
    """Raises ValueError for a template that does not compile, takes too long to compile, or does not come to its end
    for a one-message conversation. The check may take seconds."""
    try:
        with _stopped_after(MAX_CHECK_SECONDS), budget():
            _compile.__wrapped__(source)
        started = time.thread_time()
        _compile(source)
        seconds = time.thread_time() - started
    except Exception as error:  # from Jinja's parser or from Python's, which limits how deep blocks may nest
        raise ValueError(f"the chat template is not valid: {error}") from error
    if seconds > MAX_COMPILE_SECONDS:
        raise ValueError(f"the chat template is not valid: it takes more than {MAX_COMPILE_SECONDS:g} s to compile")
    try:
        render_template(source, messages=GREETING, tools=None, documents=None, add_generation_prompt=True)
    except (TimeoutError, MemoryError) as error:
        raise ValueError(f"the chat template does not come to its end: {error}") from error
    except Exception:  # the template may need a longer conversation
        logger.debug("a chat template refuses a greeting", exc_info=True)


def render_template(source: str, /, **variables: Any) -> str:
    """Returns the text of a conversation. Raises what the template raises, TimeoutError when it runs too long, and
    MemoryError when it makes more than `budget` allows. An untrusted template needs `check_template` first."""
    template = _compile(source)
    seconds = min(SECONDS_AT_LEAST + SECONDS_PER_MESSAGE * len(variables.get("messages", ())), MAX_SECONDS)
    with _stopped_after(seconds), budget():
        return str(template.render(**variables))


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside `with` once this thread has worked so long. The trace function looks at the clock at
    every call and every line of a template's code, and every kind of loop comes back to one of these."""
    deadline = time.thread_time() + seconds

    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}

    def on_line(frame: FrameType, _: str, __: Any) -> Any:
        # The garbage collector may run a destructor or a callback just now. Python drops an error raised there, and the
        # tracing with it, so that nothing would watch the template any more.
        is_collecting = frame.f_code.co_name == "__del__" or frame.f_code in callbacks
        if time.thread_time() > deadline and not is_collecting:
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


@lru_cache(maxsize=64)  # many adapters share one template, and a template in use is soon used again
def _compile(template: str) -> Any:
    extensions = ["jinja2.ext.loopcontrols", _Generation]
    sandbox = TemplateSandbox(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    with budget():
        return sandbox.from_string(template)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; its content is rendered unchanged."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
