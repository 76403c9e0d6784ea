"""AdapterTokenizers: chooses a request's tokenizer: the model's, or one that an adapter's folder extends.

A folder may bring added tokens, special tokens and a chat template; its vocabulary has to be the model's. These files
are untrusted: `judge` checks a template once, in a process that no request waits for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from blora.adapters import AdapterRejected, AdapterReport, AdapterText, AddedToken

from ..errors import InvalidRequest
from .chat_template import check_template
from .tokenizer import Tokenizer, num_prepared_characters

MAX_EXTENDED = 64  # different sets of added tokens at a time; a set of long tokens takes some MB
MAX_PREPARED = 200_000  # characters of added tokens, which take a fifth of a second to prepare


class AdapterTokenizers:
    def __init__(self, base: Tokenizer, vocab_size: int) -> None:
        """vocab_size: width of the model's logits."""
        self.base = base
        self._vocab_size = vocab_size
        self._base_tokens = base.added_token_contents()
        self._own: dict[str, Tokenizer] = {}  # digest -> tokenizer, for adapters that add or replace anything

    def judge(self, path: str, text: AdapterText, vocab_size: int | None = None) -> tuple[str, ...]:
        """Returns the warnings that `add` would return. vocab_size: the adapter's own; None is the model's. Raises
        AdapterRejected for a text that `add` would refuse, and for a template that would run too long: all requests
        would wait for it. This check may take seconds."""
        tokenizer, warnings = self._make(path, text, vocab_size or self._vocab_size)
        if tokenizer.chat_template is not None and tokenizer.chat_template != self.base.chat_template:
            try:
                check_template(tokenizer.chat_template)
            except ValueError as error:
                raise AdapterRejected(path, [str(error)]) from error
        return warnings

    def add(self, path: str, digest: str, text: AdapterText, vocab_size: int | None = None) -> tuple[str, ...]:
        """Adds a text that `judge` accepted; returns warnings. Raises AdapterRejected if its tokens cannot be used."""
        tokenizer, warnings = self._make(path, text, vocab_size or self._vocab_size)
        if tokenizer is not self.base:
            self._own[digest] = tokenizer
        return warnings

    def check_report(self, report: AdapterReport) -> AdapterReport:
        """Returns the report with the warnings and problems that `judge` finds in the text."""
        try:
            warnings = self.judge(report.path, report.text, report.vocab_size)
        except AdapterRejected as error:
            return replace(report, problems=(*report.problems, *error.problems))
        return replace(report, warnings=(*report.warnings, *warnings))

    def _make(self, path: str, text: AdapterText, vocab_size: int) -> tuple[Tokenizer, tuple[str, ...]]:
        tokens, warnings = self._additions(path, text, vocab_size)
        named = dict(text.special_tokens)
        named.pop("pad_token", None)  # no prompt and no answer contains it
        known = self.base.special_tokens
        special_tokens = {name: token for name, token in named.items() if known.get(name) != token}
        template = None if text.chat_template == self.base.chat_template else text.chat_template
        if not tokens and not special_tokens and template is None:
            return self.base, warnings
        return self._derive(path, tokens, special_tokens, template), warnings

    def _additions(
        self, path: str, text: AdapterText, vocab_size: int
    ) -> tuple[tuple[AddedToken, ...], tuple[str, ...]]:
        tokens = [token for token in text.added_tokens if self._base_tokens.get(token.id) != token.content]
        # No prompt contains a padding token. Most training sets one, whether or not the model has a row for it.
        pad = dict(text.special_tokens).get("pad_token")
        unused = [token for token in tokens if token.content == pad and token.id >= vocab_size]
        used = [token for token in tokens if token not in unused]
        problems = [problem for token in used if (problem := self._problem(token, vocab_size))]
        if problems:
            raise AdapterRejected(path, problems)
        warnings = [f"{_named(token)} only pads, beyond the model's vocabulary, and was left out" for token in unused]
        return tuple(used), tuple(warnings)

    def _problem(self, token: AddedToken, vocab_size: int) -> str | None:
        if token.id >= vocab_size:
            whose = "the model's" if vocab_size == self._vocab_size else "its own"
            return f"{_named(token)} is beyond {whose} vocabulary of {vocab_size}"
        known_id, known_token = self.base.token_id(token.content), self.base.token(token.id)
        if known_id not in (None, token.id):
            return f"{_named(token)} has the id {known_id} in the model's tokenizer"
        if known_token not in (None, token.content):
            return f"{_named(token)} has the id of {known_token!r} in the model's tokenizer"
        return None

    def _derive(
        self, path: str, tokens: tuple[AddedToken, ...], special_tokens: Mapping[str, str], template: str | None
    ) -> Tokenizer:
        num_prepared = num_prepared_characters(tokens)
        if num_prepared > MAX_PREPARED:
            problem = f"its added tokens take {num_prepared} characters of preparation, more than {MAX_PREPARED}"
            raise AdapterRejected(path, [problem])
        extended = {known.added_tokens: known for known in self._own.values() if known.added_tokens}
        if tokens and tokens not in extended and len(extended) >= MAX_EXTENDED:
            raise AdapterRejected(path, [f"its added tokens are new, and {MAX_EXTENDED} sets, the limit, are kept"])
        try:
            return self.base.derive(tokens, special_tokens, template, twin=extended.get(tokens))
        except ValueError as error:
            raise AdapterRejected(path, [str(error)]) from error

    def of(self, digests: Sequence[str]) -> Tokenizer:
        """Returns the tokenizer of a request: the first of its adapters that has its own, else the model's. Raises
        InvalidRequest if two of its adapters add different tokens."""
        own = [self._own[digest] for digest in digests if digest in self._own]
        if len({tokenizer.added_tokens for tokenizer in own}) > 1:
            raise InvalidRequest("lora_request", "the adapters add different tokens to the tokenizer")
        return own[0] if own else self.base

    def digests(self) -> set[str]:
        """Returns the digests of adapters that have their own tokenizer."""
        return set(self._own)

    def forget(self, digest: str) -> None:
        """Drops an adapter's tokenizer. An unknown digest is ignored."""
        self._own.pop(digest, None)


def _named(token: AddedToken) -> str:
    return f"added token {token.content!r:.80} ({token.id})"
