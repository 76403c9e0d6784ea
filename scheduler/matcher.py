"""Matcher: what the text of one answer has to match, after the tokens so far. The scheduler only tells it of tokens."""

from typing import Protocol


class Matcher(Protocol):
    def take(self, token_id: int) -> bool:
        """Goes on after a token of the answer. Returns whether the answer is complete: nothing can follow."""
