"""Chat templates: programs of a model, an adapter or a request that turn a conversation into text. This file runs them
in a sandbox.

A template is untrusted: the sandbox stops it when it takes too long or makes too much text. In a server, the template
of a request or an adapter runs in a process that no stream waits for; in an `LLM`, the caller waits. `check_template`
measures before that how long it takes to compile.
"""

import gc
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from .template_sandbox import TemplateSandbox, budget

logger = logging.getLogger(__name__)
MAX_SECONDS = 1.0  # this thread's CPU time for any conversation; a thousand messages take a tenth of it
SECONDS_AT_LEAST, SECONDS_PER_ITEM = 0.1, 0.01  # CPU time that a short conversation may take; items: messages, tools
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
    template = _compile(source).program
    num_items = sum(len(variables.get(name) or ()) for name in ("messages", "tools"))
    seconds = min(SECONDS_AT_LEAST + SECONDS_PER_ITEM * num_items, MAX_SECONDS)
    with _stopped_after(seconds), budget():
        return str(template.render(**variables))


@dataclass(frozen=True, slots=True)
class ContentUse:
    """What a template does with the contents of messages."""

    loops: bool  # goes through their parts
    asks_for_text: bool  # takes texts, too
    asks_for_none: bool


def content_use(source: str) -> ContentUse:
    return _compile(source).content_use


@lru_cache(maxsize=64)
def warn_of_unread_tools(source: str) -> None:
    """Warns once of a template that does not read tools: its model would never hear of them."""
    if not _compile(source).reads_tools:
        logger.warning("tools are given to a chat template that does not read them; the model is not told of any")


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


@dataclass(frozen=True, slots=True)
class _Compiled:
    program: Any
    content_use: ContentUse
    reads_tools: bool


@lru_cache(maxsize=64)  # many adapters share one template, and a template in use is soon used again
def _compile(template: str) -> _Compiled:
    extensions = ["jinja2.ext.loopcontrols", _Generation]
    sandbox = TemplateSandbox(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    with budget():
        parsed = sandbox.parse(template)
        use = _content_use(parsed)
        reads_tools = any(name.name == "tools" for name in parsed.find_all(nodes.Name))
        return _Compiled(sandbox.from_string(parsed), use, reads_tools)


def _content_use(parsed: nodes.Template) -> ContentUse:
    loops = any(_is_content(loop.iter) for loop in parsed.find_all(nodes.For))
    tests = {test.name for test in parsed.find_all(nodes.Test) if _is_content(test.node)}
    return ContentUse(loops, "string" in tests, "none" in tests)


def _is_content(node: nodes.Node) -> bool:
    """Returns whether an expression is the content of a message in a variable, perhaps filtered or a part of it."""
    if isinstance(node, nodes.Filter) or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)):
        return node.node is not None and _is_content(node.node)
    if isinstance(node, nodes.Getitem):
        return isinstance(node.node, nodes.Name) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name) and node.attr == "content"


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; its content is rendered unchanged."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
