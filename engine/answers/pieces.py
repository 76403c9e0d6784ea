"""The pieces of which an answer consists, in the order of the model's text, and the answer that they add up to."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of a tool begins; pieces with its arguments follow."""

    index: int  # 0, 1, ... in the order of the calls
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A part of the arguments of a call, as the model wrote them: nothing promises that they are JSON."""

    index: int
    text: str


Piece = Content | Reasoning | CallStart | Arguments


@dataclass(slots=True)
class Call:
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    """A whole answer; None where it has no such text."""

    content: str | None = None
    reasoning: str | None = None
    calls: list[Call] = field(default_factory=list)


def whole(pieces: Iterable[Piece]) -> Answer:
    contents: list[str] = []
    reasonings: list[str] = []
    names: list[str] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        match piece:
            case Content(text):
                contents.append(text)
            case Reasoning(text):
                reasonings.append(text)
            case CallStart(_, name):
                names.append(name)
                arguments.append([])
            case Arguments(index, text):
                arguments[index].append(text)
    calls = [Call(name, "".join(texts)) for name, texts in zip(names, arguments, strict=True)]
    return Answer("".join(contents) or None, "".join(reasonings) or None, calls)


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Returns the same pieces, with neighbours of a kind in one; so a piece of a stream is as large as its news."""
    runs: list[tuple[Piece, list[str]]] = []
    for piece in pieces:
        if isinstance(piece, CallStart):
            runs.append((piece, []))
        elif runs and _goes_on(runs[-1][0], piece):
            runs[-1][1].append(piece.text)
        else:
            runs.append((piece, [piece.text]))
    return [_with_text(first, "".join(texts)) for first, texts in runs]


def _goes_on(first: Piece, piece: Content | Reasoning | Arguments) -> bool:
    if isinstance(first, Arguments) and isinstance(piece, Arguments):
        return first.index == piece.index
    return type(first) is type(piece)


def _with_text(piece: Piece, text: str) -> Piece:
    match piece:
        case Content():
            return Content(text)
        case Reasoning():
            return Reasoning(text)
        case Arguments(index, _):
            return Arguments(index, text)
    return piece
