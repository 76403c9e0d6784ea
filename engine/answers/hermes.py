"""Calls of tools as Hermes and Qwen models write them: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

import re

from .json_call import CallRules, read_call
from .pieces import Content
from .text_reader import Reading, TextReader, content_until

START, END = "<tool_call>", "</tool_call>"
RULES = CallRules(end=END)
CLOSING = re.compile(r"[\s}]+")  # small models close a brace too many


def hermes_calls(text: TextReader) -> Reading[None]:
    index = 0
    while (yield from content_until(text, START)):
        if not (yield from read_call(text, index, RULES)):
            yield Content(text.release())
            continue
        index += 1
        text.hold()
        yield from text.take_all(CLOSING)
        is_closed = yield from text.take(END)
        rest = text.release()
        if not is_closed:
            yield Content(rest)
