"""The formats of calls and of reasoning, by the names that vLLM gives their parsers, and the format that a model's chat
template shows."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from .answer_parser import Calls
from .hermes import START as HERMES_START
from .hermes import hermes_calls
from .llama import TAG, llama_calls
from .mistral import START as MISTRAL_START
from .mistral import mistral_calls
from .reasoning import Marks

AUTO, NONE = "auto", "none"


@dataclass(frozen=True, slots=True)
class CallFormat:
    name: str
    marker: str  # often a special token, which then has to be shown
    reader: Callable[[Collection[str] | None], Calls]  # from the names of the tools
    shown_in: re.Pattern[str]  # a template that asks for this format
    has_short_ids: bool = False  # nine letters and digits; other ids are refused by the template


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    name: str
    marks: Marks
    is_always_open: bool = False  # an answer begins inside the reasoning, though its prompt does not show it


# A template may print a call in several parts, whose quotes and braces stand between.
HERMES = CallFormat(
    "hermes",
    HERMES_START,
    lambda _: hermes_calls,
    re.compile(r"<tool_call>[\s\\n\"'{}\-]*\{\s*\\?[\"'](?:name|arguments)\b"),
)
LLAMA = CallFormat(
    "llama3_json",
    TAG,
    lambda names: partial(llama_calls, names=names),
    re.compile(r"\{\\?\"name\\?\": function name, \\?\"parameters\\?\":"),
)
MISTRAL = CallFormat(
    "mistral", MISTRAL_START, lambda _: mistral_calls, re.compile(re.escape(MISTRAL_START)), has_short_ids=True
)
CALL_FORMATS = {one.name: one for one in (HERMES, LLAMA, MISTRAL)}

THINK = Marks("<think>", "</think>")
QWEN = ReasoningFormat("qwen3", THINK)
REASONING_FORMATS = {
    one.name: one
    for one in (
        QWEN,
        ReasoningFormat("deepseek_r1", THINK, is_always_open=True),
        ReasoningFormat("mistral", Marks("[THINK]", "[/THINK]")),
    )
}
# Of formats that share a marker with one of these.
OTHERS = re.compile("<function=|<arg_key>|<parameter=")


def call_format(template: str | None) -> CallFormat | None:
    """Returns the format of calls for which a chat template asks; None unless it is one for certain."""
    if template is None or OTHERS.search(template):
        return None
    shown = [one for one in CALL_FORMATS.values() if one.shown_in.search(template)]
    return shown[0] if len(shown) == 1 else None


def reasoning_format(template: str | None) -> ReasoningFormat | None:
    """Returns the format of reasoning that a chat template writes or takes away; None if it knows no reasoning."""
    shown = [one for one in REASONING_FORMATS.values() if template is not None and one.marks.end in template]
    return shown[0] if shown else None
