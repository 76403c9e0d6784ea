"""AdapterText: the text settings of an adapter folder: added tokens, special tokens and a chat template.

Knows no tokenizer and reads no file itself. The text changes no weight, but it is a part of the adapter's identity:
requests of one digest get the same answers, and a version that differs only in its template can be rolled back.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
MAX_FILE_BYTES = {  # bytes; larger than the files of any model
    TOKENIZER_FILE: 64 << 20,
    TOKENIZER_CONFIG_FILE: 4 << 20,
    ADDED_TOKENS_FILE: 1 << 20,
    SPECIAL_TOKENS_FILE: 1 << 20,
    TEMPLATE_FILE: 256 << 10,
}
MAX_ADDED_TOKENS = 4096
MAX_TOKEN_LENGTH = 256  # characters

ReadFile = Callable[[str, int], bytes | None]  # name, most bytes -> content; None for a file that is not there


class TextError(ValueError):
    """A file cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """An added token as in tokenizer.json; the flags are those of the tokenizers library."""

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = True


@dataclass(frozen=True, slots=True)
class AdapterText:
    added_tokens: tuple[AddedToken, ...] = ()  # by id, with those of the model's own tokenizer
    special_tokens: tuple[tuple[str, str], ...] = ()  # (name, content), such as ("eos_token", "</s>"), by name
    chat_template: str | None = None

    @property
    def is_empty(self) -> bool:
        return self == AdapterText()


def read_adapter_text(read: ReadFile) -> AdapterText:
    """Returns the text settings of an adapter folder. Raises TextError, and the errors of `read`."""
    files = {name: read(name, max_bytes) for name, max_bytes in MAX_FILE_BYTES.items()}
    config = _decode(TOKENIZER_CONFIG_FILE, files[TOKENIZER_CONFIG_FILE], dict[str, Any]) or {}
    tokenizer = _decode(TOKENIZER_FILE, files[TOKENIZER_FILE], _TokenizerFile) or _TokenizerFile()
    names = tokenizer.names() | config
    if "added_tokens_decoder" not in config:  # as in transformers, the older files count only without it
        names |= _decode(SPECIAL_TOKENS_FILE, files[SPECIAL_TOKENS_FILE], dict[str, Any]) or {}
    special_tokens = _special_tokens(names)
    added_tokens = _added_tokens(files[ADDED_TOKENS_FILE], tokenizer, config, dict(special_tokens).values())
    return AdapterText(added_tokens, special_tokens, _template(files[TEMPLATE_FILE], config))


def encode_text(text: AdapterText) -> bytes:
    """Returns bytes for a digest: the same bytes for the same text."""
    return json.dumps(asdict(text), sort_keys=True).encode()


@dataclass
class _TokenizerFile:
    """The part of tokenizer.json that is read. The rest is skipped: the vocabulary is the model's own."""

    added_tokens: list[AddedToken] = field(default_factory=list)
    padding: dict[str, Any] | None = None

    def names(self) -> dict[str, Any]:
        """Returns the special tokens that this file names."""
        return {"pad_token": self.padding.get("pad_token")} if self.padding else {}


def _decode(name: str, content: bytes | None, kind: Any) -> Any:
    if content is None:
        return None
    import msgspec  # skips a vocabulary without making objects of it; a server that reads no adapter does not need it

    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise TextError(f"{name} cannot be used: {error}") from error


def _added_tokens(
    oldest: bytes | None, tokenizer: _TokenizerFile, config: Mapping[str, Any], special: Collection[str]
) -> tuple[AddedToken, ...]:
    """Returns the added tokens of the first of three files that lists any; that file lists them all. oldest: the file
    that has no flags. special: the tokens that have a name."""
    tokens = tokenizer.added_tokens
    if not tokens and config.get("added_tokens_decoder"):
        tokens = _of_decoder(config["added_tokens_decoder"])
    if not tokens:
        ids = _decode(ADDED_TOKENS_FILE, oldest, dict[str, int]) or {}
        tokens = [
            AddedToken(token_id, content, special=content in special, normalized=content not in special)
            for content, token_id in ids.items()
        ]
    return _checked(tokens)


def _of_decoder(decoder: Any) -> list[AddedToken]:
    """Converts the decoder of tokenizer_config.json, a mapping from an id to the rest of a token."""
    import msgspec

    try:
        listed = [{**token, "id": int(token_id)} for token_id, token in decoder.items()]
        return msgspec.convert(listed, list[AddedToken])
    except (msgspec.ValidationError, AttributeError, TypeError, ValueError) as error:
        raise TextError(f"{TOKENIZER_CONFIG_FILE} cannot be used: added_tokens_decoder: {error}") from error


def _checked(tokens: list[AddedToken]) -> tuple[AddedToken, ...]:
    if len(tokens) > MAX_ADDED_TOKENS:
        raise TextError(f"{len(tokens)} added tokens, at most {MAX_ADDED_TOKENS} are taken")
    for token in tokens:
        if token.id < 0 or not 1 <= len(token.content) <= MAX_TOKEN_LENGTH:
            named = f"added token {token.content!r:.80} ({token.id})"
            raise TextError(f"{named} has no valid id, or not 1 to {MAX_TOKEN_LENGTH} characters")
    if len({token.id for token in tokens}) < len(tokens) or len({token.content for token in tokens}) < len(tokens):
        raise TextError("two added tokens have the same id or the same content")
    return tuple(sorted(tokens, key=lambda token: token.id))


def _special_tokens(config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Returns the special tokens, by name. The file has a token as text or as an object."""
    named = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in config.items()
        if name.endswith("_token")
    }
    texts = {name: text for name, text in named.items() if isinstance(text, str) and len(text) <= MAX_TOKEN_LENGTH}
    return tuple(sorted(texts.items()))


def _template(file: bytes | None, config: Mapping[str, Any]) -> str | None:
    if file is None:
        return template_of(config)
    try:
        return file.decode()
    except UnicodeDecodeError as error:
        raise TextError(f"{TEMPLATE_FILE} is not UTF-8") from error


def template_of(config: Mapping[str, Any], name: str = "default") -> str | None:
    """Returns the template in a tokenizer_config.json. Of several, "default" is the one for plain conversations."""
    template = config.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = {entry.get("name"): entry.get("template") for entry in entries}
    if isinstance(template, dict):
        template = template.get(name)
    elif name != "default":
        return None
    return template if isinstance(template, str) else None
