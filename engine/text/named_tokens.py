"""NamedTokens: the tokens that a model's folder names beside its tokenizer.json.

Three files name them: tokenizer_config.json, and two older ones, which count where the first has no
`added_tokens_decoder`. Their meaning is transformers' (`PreTrainedTokenizerBase`, `TokenizersBackend`): models are
trained with the tokenizer that it makes of these files. Knows no template and no request.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from ..model_files.config import UnsupportedModel, read_json

CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA, OLDER_EXTRA = "extra_special_tokens", "additional_special_tokens"

Token = str | AddedToken  # a text has the flags of a special token


@dataclass(frozen=True, slots=True)
class NamedTokens:
    special: Mapping[str, str]  # name, such as "eos_token" -> content
    added: tuple[AddedToken, ...]  # in the order in which they get their ids, those that have theirs already included
    ids: Mapping[str, int]  # content -> the id that a file gives it


def read_named_tokens(folder: Path, backend: tokenizers.Tokenizer) -> NamedTokens:
    """backend: the tokenizer of the folder's tokenizer.json. Raises UnsupportedModel for a file that cannot be used."""
    config = read_object(folder / CONFIG_FILE)
    older = {} if "added_tokens_decoder" in config else read_object(folder / MAP_FILE)
    try:
        named, extra = _named(config, older), _extra(config, older)
        if "added_tokens_decoder" in config:
            listed = {int(index): _object(token) for index, token in config["added_tokens_decoder"].items()}
        else:
            added = _added(read_object(folder / ADDED_FILE), _special_contents(config, older))
            listed = added | backend.get_added_tokens_decoder()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"the special tokens that {folder} names cannot be used: {error!r}") from error
    if backend.padding is not None:
        named.setdefault("pad_token", backend.padding["pad_token"])
    return _resolve(named, extra, listed, backend)


def read_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, empty where there is no such file. Raises UnsupportedModel."""
    content = read_json(path) if path.exists() else {}
    return content if isinstance(content, dict) else {}


# What the files hold.


def _token(value: Any) -> Token:
    """Converts a text, or an object with flags. A name's object is special, unless transformers marked its type."""
    if isinstance(value, str):
        return value
    return _object(value if "__type" in value else {**value, "special": True})


def _object(value: Mapping[str, Any]) -> AddedToken:
    return AddedToken(value["content"], **{name: value[name] for name in FLAGS if name in value})


def _content(token: Token) -> str:
    return token if isinstance(token, str) else token.content


def _named(config: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, Token]:
    """Returns the tokens with a name: the usual names first, then the model's own."""
    found = {
        name: _token(value)
        for name, value in {**config, **older}.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }
    usual = {name: found.pop(name) for name in NAMES if name in found}
    texts = {name: token for name, token in found.items() if isinstance(token, str) and name not in older}
    for extra in (config.get(EXTRA), older.get(EXTRA)):
        if isinstance(extra, dict):
            texts |= {name: _token(value) for name, value in extra.items()}
    return {**usual, **{name: found[name] for name in found if name not in texts}, **texts}


def _extra(config: Mapping[str, Any], older: Mapping[str, Any]) -> list[Token]:
    """Returns the special tokens without a name. Of two lists in one file, and of an old list in two files, one
    counts."""
    extra = config[OLDER_EXTRA] if OLDER_EXTRA in config and not config.get(EXTRA) else config.get(EXTRA)
    tokens = None if extra is None or isinstance(extra, dict) else [_token(value) for value in extra]
    if isinstance(older.get(EXTRA), list):
        more = [_token(value) for value in older[EXTRA]]
        return [*(tokens or []), *(token for token in more if token not in (tokens or []))]
    if tokens is None:
        tokens = [_token(value) for value in older.get(OLDER_EXTRA) or ()]
    return tokens


def _special_contents(config: Mapping[str, Any], older: Mapping[str, Any]) -> set[str]:
    """Returns the tokens that are special in the file of added tokens: an old list of the map does not count there."""
    named, extra = _named(config, older), _extra(config, {**older, OLDER_EXTRA: None})
    return {_content(token) for token in [*(named[name] for name in NAMES if name in named), *extra]}


def _added(older: Mapping[str, Any], special: Collection[str]) -> dict[int, AddedToken]:
    return {
        int(index): AddedToken(content, special=content in special, normalized=content not in special)
        for content, index in older.items()
    }


# What the tokenizer is told.


def _resolve(
    named: Mapping[str, Token], extra: Iterable[Token], listed: Mapping[int, AddedToken], backend: tokenizers.Tokenizer
) -> NamedTokens:
    by_content = {token.content: token for token in listed.values()}
    named = {name: by_content.get(_content(token), token) if name in NAMES else token for name, token in named.items()}
    known = {token.content for token in backend.get_added_tokens_decoder().values()} | by_content.keys()
    added: list[Token] = [token for _, token in sorted(listed.items())]
    for token in [*named.values(), *extra]:
        if _content(token) not in known and token not in added:
            added.append(token)
    special = {name: _content(token) for name, token in named.items()}
    return NamedTokens(
        special,
        tuple(_flagged(token, special.values()) for token in added),
        {token.content: index for index, token in listed.items()},
    )


def _flagged(token: Token, special: Collection[str]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    token.special = token.special or token.content in special
    return token
