"""Logprobs of the engine -> those of chat, of completions, and of vLLM's prompts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...outputs import CompletionOutput, Logprob
from .answers import ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, TokenLogprob

Candidates = Mapping[int, Logprob]
LEAST = -9999.0  # as vLLM shows a probability of 0


def chat_logprobs(sample: CompletionOutput, num_top: int) -> ChatLogprobs | None:
    """num_top: most likely tokens to show for each token."""
    if sample.logprobs is None:
        return None
    pairs = zip(sample.token_ids, sample.logprobs, strict=True)
    return ChatLogprobs([_chat_token(token_id, candidates, num_top) for token_id, candidates in pairs])


def _chat_token(token_id: int, candidates: Candidates, num_top: int) -> ChatTokenLogprob:
    own = candidates[token_id]
    token = _text(own)
    top = list(map(_token, _top(candidates, num_top)))
    return ChatTokenLogprob(token, _finite(own.logprob), _bytes(token), top)


def _token(logprob: Logprob) -> TokenLogprob:
    token = _text(logprob)
    return TokenLogprob(token, _finite(logprob.logprob), _bytes(token))


def _top(candidates: Candidates, num_top: int) -> list[Logprob]:
    return sorted(candidates.values(), key=lambda logprob: logprob.rank)[:num_top]


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)  # JSON has no infinity


def _text(logprob: Logprob) -> str:
    return logprob.decoded_token or ""


def _bytes(token: str) -> list[int]:
    return list(token.encode(errors="replace"))


class CompletionPositions:
    """Logprobs of one choice of a completion, from piece to piece: the offsets of its tokens go on."""

    def __init__(self, num_top: int, spell: Callable[[int], str] = str) -> None:
        """spell: returns the text of a token, for the first one of a prompt, which has no logprob."""
        self._num_top, self._spell = num_top, spell
        self._offset = 0

    def of(self, token_ids: Sequence[int], positions: Sequence[Candidates | None] | None) -> CompletionLogprobs | None:
        """A position without candidates is the first one of a prompt."""
        if positions is None:
            return None
        shown = CompletionLogprobs([], [], [], [])
        for token_id, candidates in zip(token_ids, positions, strict=True):
            own = (candidates or {}).get(token_id)
            token = self._spell(token_id) if own is None else _text(own)
            shown.text_offset.append(self._offset)
            shown.token_logprobs.append(None if own is None else _finite(own.logprob))
            shown.tokens.append(token)
            shown.top_logprobs.append(None if candidates is None else self._top(candidates, token_id))
            self._offset += len(token)
        return shown

    def _top(self, candidates: Candidates, token_id: int) -> dict[str, float]:
        """The drawn token is among them, as in vLLM's and in OpenAI's answers."""
        shown = {_text(logprob): _finite(logprob.logprob) for logprob in _top(candidates, self._num_top)}
        own = candidates[token_id]
        return shown | {_text(own): _finite(own.logprob)}


def prompt_logprobs(positions: Sequence[Candidates | None]) -> list[Any]:
    """vLLM's form: token id -> its logprob, its rank and its text."""
    return [
        None if candidates is None else {str(t): _entry(e) for t, e in candidates.items()} for candidates in positions
    ]


def most_likely(
    token_ids: Sequence[int], positions: Sequence[Candidates | None], num_top: int
) -> list[Candidates | None]:
    """Returns the positions of these tokens with their most likely candidates and the token itself: another part of the
    answer may have asked for more."""
    pairs = zip(token_ids, positions, strict=True)
    return [
        candidates and {t: entry for t, entry in candidates.items() if entry.rank <= num_top or t == token_id}
        for token_id, candidates in pairs
    ]


def _entry(logprob: Logprob) -> dict[str, Any]:
    return {"logprob": _finite(logprob.logprob), "rank": logprob.rank, "decoded_token": logprob.decoded_token}
