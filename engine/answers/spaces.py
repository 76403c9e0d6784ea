"""Spaces that separate the parts of an answer belong to none of them: those before and after calls, and at the end of
the reasoning."""

from collections.abc import Generator

from .pieces import CallStart, Content, Piece, Reasoning

Pieces = Generator[Piece | None, None, None]


def without_separators(pieces: Pieces) -> Pieces:
    """Holds back the spaces with which a text ends, until more of the same text follows."""
    held: list[Piece] = []
    has_calls = False
    for piece in pieces:
        if not isinstance(piece, Content | Reasoning):
            has_calls = has_calls or isinstance(piece, CallStart)
            if piece is not None:
                held.clear()
            yield piece
            continue
        if held and type(held[0]) is not type(piece):
            held.clear()
        shown = piece.text.rstrip()
        if shown:
            yield from held
            held.clear()
            yield type(piece)(shown)
        if len(shown) < len(piece.text):
            held.append(type(piece)(piece.text[len(shown) :]))
    if held and isinstance(held[0], Content) and not has_calls:
        yield from held
