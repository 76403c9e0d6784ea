"""What a client sees of one choice of a chat, in one answer or in the deltas of a stream: the text as it is, or divided
into content, reasoning and calls of tools."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ...answers.answer_form import AnswerForm
from ...answers.pieces import Arguments, CallStart, Content, Piece, Reasoning, whole
from ...outputs import CompletionOutput
from .answers import ChatMessage, Delta, Function, FunctionDelta, ToolCall, ToolCallDelta


class View(Protocol):
    def add(self, part: CompletionOutput) -> None:
        """Takes the next part of a choice that is shown at once."""

    def message(self) -> ChatMessage: ...

    def delta(self, part: CompletionOutput) -> Delta:
        """Returns what the next part of a stream shows."""

    def finish_reason(self, reason: str | None) -> str | None:
        """Returns the reason in OpenAI's words."""


class TextView:
    """The text is the content."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, part: CompletionOutput) -> None:
        self._texts.append(part.text)

    def message(self) -> ChatMessage:
        return ChatMessage(role="assistant", content="".join(self._texts), refusal=None)

    def delta(self, part: CompletionOutput) -> Delta:
        return Delta(content=part.text)

    def finish_reason(self, reason: str | None) -> str | None:
        return reason


class DividedView:
    """The text is divided as the form of the answers says."""

    def __init__(self, form: AnswerForm, prompt: str, shows_reasoning: bool) -> None:
        """prompt: its end."""
        self._form = form
        self._parser = form.parser(prompt)
        self._shows_reasoning = shows_reasoning
        self._pieces: list[Piece] = []
        self._has_calls = False

    def add(self, part: CompletionOutput) -> None:
        self._pieces += self._read(part)

    def message(self) -> ChatMessage:
        answer = whole(self._pieces)
        calls = [
            ToolCall(self._form.new_call_id(), Function(name=call.name, arguments=call.arguments))
            for call in answer.calls
        ]
        content = answer.content if calls or answer.reasoning else answer.content or ""
        return ChatMessage(
            role="assistant",
            content=content,
            refusal=None,
            reasoning_content=answer.reasoning,
            reasoning=answer.reasoning,
            tool_calls=calls or None,
        )

    def delta(self, part: CompletionOutput) -> Delta:
        pieces = self._read(part)
        reasoning = _text(piece.text for piece in pieces if isinstance(piece, Reasoning))
        return Delta(
            content=_text(piece.text for piece in pieces if isinstance(piece, Content)),
            reasoning_content=reasoning,
            reasoning=reasoning,
            tool_calls=_call_deltas(pieces, self._form.new_call_id),
        )

    def finish_reason(self, reason: str | None) -> str | None:
        return self._form.finish_reason(reason, self._has_calls)

    def _read(self, part: CompletionOutput) -> list[Piece]:
        pieces = self._parser.push(part.text) if part.text else []
        if part.finished():
            pieces += self._parser.finish()
        pieces = self._form.allowed(pieces)
        self._has_calls = self._has_calls or any(isinstance(piece, CallStart) for piece in pieces)
        return pieces if self._shows_reasoning else [piece for piece in pieces if not isinstance(piece, Reasoning)]


def _text(texts: Iterable[str]) -> str | None:
    return "".join(texts) or None


def _call_deltas(pieces: Sequence[Piece], new_id: Callable[[], str]) -> list[ToolCallDelta] | None:
    """Returns what is new of each call; its first delta has the id and the name."""
    deltas: dict[int, ToolCallDelta] = {}
    for piece in pieces:
        match piece:
            case CallStart(index, name):
                function = FunctionDelta(name=name, arguments="")
                deltas[index] = ToolCallDelta(index=index, id=new_id(), type="function", function=function)
            case Arguments(index, text):
                call = deltas.setdefault(index, ToolCallDelta(index=index, function=FunctionDelta(arguments="")))
                call.function.arguments += text
    return list(deltas.values()) or None
