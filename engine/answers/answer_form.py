"""AnswerForm: the form of answers to a request: which reasoning and calls may be in them, and how they are read."""

import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from ..errors import InvalidRequest
from .answer_parser import AnswerParser, Calls, content_only
from .forced import listed_calls, named_call
from .formats import (
    AUTO,
    CALL_FORMATS,
    NONE,
    REASONING_FORMATS,
    CallFormat,
    ReasoningFormat,
    call_format,
    reasoning_format,
)
from .pieces import Piece
from .tool_choice import Mode, ToolChoice

ID_CHARACTERS = string.ascii_letters + string.digits
SHORT_ID_LENGTH, ID_LENGTH = 9, 24


@dataclass(frozen=True, slots=True)
class AnswerFormats:
    """What a model writes besides content, by the names of formats; "auto" asks the chat template."""

    tool_call_parser: str = AUTO
    reasoning_parser: str = AUTO

    def calls(self, template: str | None) -> CallFormat | None:
        if self.tool_call_parser == AUTO:
            return _call_format(template)
        return CALL_FORMATS.get(self.tool_call_parser)

    def reasoning(self, template: str | None) -> ReasoningFormat | None:
        if self.reasoning_parser == AUTO:
            return _reasoning_format(template)
        return REASONING_FORMATS.get(self.reasoning_parser)


# A template has tens of thousands of characters, and each request asks.
_call_format = lru_cache(maxsize=64)(call_format)
_reasoning_format = lru_cache(maxsize=64)(reasoning_format)


@dataclass(frozen=True, slots=True)
class AnswerForm:
    choice: ToolChoice
    call_format: CallFormat | None  # None where calls are not read, or are forced
    reasoning: ReasoningFormat | None  # None where the answer has none

    @staticmethod
    def of(formats: AnswerFormats, template: str | None, choice: ToolChoice, *, is_structured: bool) -> "AnswerForm":
        """template: the one that made the prompt. is_structured: whether a grammar rules the text from its first token,
        so that there is no place for reasoning. Raises InvalidRequest where nobody knows how the model calls tools."""
        is_ruled = is_structured or choice.schema is not None
        calls = formats.calls(template)
        if choice.mode is Mode.AUTO and calls is None:
            known = ", ".join(CALL_FORMATS)
            reason = "is 'auto', and the model's chat template does not say for certain how the model writes calls; "
            reason += f"start the server with --tool-call-parser ({known}), or demand a call with 'required'"
            raise InvalidRequest("tool_choice", reason)
        return AnswerForm(choice, calls, None if is_ruled else formats.reasoning(template))

    def is_plain(self) -> bool:
        """Returns whether the text is the content as it is."""
        return self.choice.mode is Mode.NONE and self.reasoning is None

    def hides_markers(self, special_tokens: Collection[str]) -> bool:
        """Returns whether a marker is among special tokens, so that these have to be shown."""
        calls = self.call_format if self.choice.mode is Mode.AUTO else None
        markers = ([calls.marker] if calls else []) + ([self.reasoning.marks.end] if self.reasoning else [])
        return not set(special_tokens).isdisjoint(markers)

    def parser(self, prompt: str) -> AnswerParser:
        """prompt: the text of the conversation, which may end inside the reasoning."""
        if self.reasoning is None:
            return AnswerParser(self._calls())
        is_open = self.reasoning.is_always_open or self.reasoning.marks.is_open(prompt)
        return AnswerParser(self._calls(), self.reasoning.marks, is_open=is_open)

    def _calls(self) -> Calls:
        match self.choice.mode:
            case Mode.NAMED:
                return named_call(self.choice.tools[0]["name"])
            case Mode.REQUIRED:
                return listed_calls
            case Mode.AUTO if self.call_format is not None:
                return self.call_format.reader(self.choice.names)
        return content_only

    def allowed(self, pieces: list[Piece]) -> list[Piece]:
        """Returns the pieces without calls that are one too many."""
        if self.choice.is_parallel:
            return pieces
        return [piece for piece in pieces if getattr(piece, "index", 0) == 0]

    def finish_reason(self, reason: str | None, has_calls: bool) -> str | None:
        """Returns the reason that OpenAI's API gives: a demanded call of one tool "stops", as there."""
        is_told = has_calls and reason == "stop" and self.choice.mode is not Mode.NAMED
        return "tool_calls" if is_told else reason

    def new_call_id(self) -> str:
        if self.call_format is not None and self.call_format.has_short_ids:
            return _random_id(SHORT_ID_LENGTH)
        return f"call_{_random_id(ID_LENGTH)}"


def _random_id(length: int) -> str:
    return "".join(secrets.choice(ID_CHARACTERS) for _ in range(length))


__all__ = ["AUTO", "CALL_FORMATS", "NONE", "REASONING_FORMATS", "AnswerForm", "AnswerFormats"]
