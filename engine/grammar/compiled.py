"""Grammar: a compiled grammar, and Matcher, one answer's way through it.

All samples and requests of a grammar share what the library finds out about it. Each step of a way costs a bounded
amount of work; one that would cost more ends with an error, and so does only its request.
"""

from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits

from ..errors import InvalidRequest
from .source import FIELD
from .vocabulary import Vocabulary

# The work for one mask takes some milliseconds at most, and the states of a grammar some 50 MB.
LIMITS = LLParserLimits(
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=30_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
TOO_COMPLEX = "the grammar of structured_outputs has become too complex for this answer"


class Matcher:
    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, spelled: Sequence[tuple[int, str]] = ()) -> None:
        """spelled: tokens that the vocabulary does not have, with their texts."""
        self.library_matcher = matcher
        self.vocabulary = vocabulary
        self._spelled = {token_id: vocabulary.spell(text) for token_id, text in spelled}

    def take(self, token_id: int) -> bool:
        """Goes on after a token of the answer. Returns whether the answer is complete: nothing can follow."""
        self.library_matcher.consume_tokens(self._spelled.get(token_id, [token_id]))
        return self.library_matcher.is_stopped() and self.error is None

    @property
    def error(self) -> str | None:
        """What ends the request, or None."""
        return TOO_COMPLEX if self.library_matcher.is_error() else None

    @property
    def reason(self) -> str:
        """What the library says of the error."""
        return _told(self.library_matcher)

    def spelled_tokens(self) -> list[int]:
        """The tokens beside the vocabulary that can follow."""
        matcher = self.library_matcher
        return [token_id for token_id, ids in self._spelled.items() if matcher.validate_tokens(ids) == len(ids)]


class Grammar:
    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        """text: from `library_text`. Raises InvalidRequest."""
        self._matcher = LLMatcher(vocabulary.tokens, text, log_level=0, limits=LIMITS)
        self._vocabulary = vocabulary
        if self._matcher.is_error():
            raise InvalidRequest(FIELD, f"cannot be served: {_told(self._matcher)}")
        mask = self._matcher.compute_bitmask()  # what it finds out is shared by all answers
        if self._matcher.is_error():
            raise InvalidRequest(FIELD, f"is too complex: {_told(self._matcher)}")
        only_end = 1 << vocabulary.end
        if int.from_bytes(mask, "little") in (0, only_end):
            raise InvalidRequest(FIELD, "matches no text but the empty one")

    def begin(self, spelled: Sequence[tuple[int, str]] = ()) -> Matcher:
        return Matcher(self._matcher.deep_copy(), self._vocabulary, spelled)


def _told(matcher: LLMatcher) -> str:
    """Returns the error in one line, without the state of the library that it ends with."""
    error = matcher.get_error().partition("\n<")[0]
    return " ".join(error.split())[:300]
