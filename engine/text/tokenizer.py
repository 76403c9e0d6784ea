"""Tokenizer: turns text into tokens and back, and conversations into text.

Imports no torch, and transformers only for a model without a tokenizer.json.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import tokenizers

from blora.adapters import AddedToken
from blora.adapters.peft.foreign import LFS_POINTER
from blora.adapters.peft.text import TEMPLATE_FILE, template_of

from ..model_files.config import UnsupportedModel
from ..model_files.foreign_model import kind_of_model_file
from .chat import Chat, Message
from .chat_rendering import render_chat
from .chat_template import warn_of_unread_tools
from .named_tokens import CONFIG_FILE, NamedTokens, read_named_tokens, read_object
from .token_stream import MAX_KEPT_TEXTS, TokenDecoder, TokenStream
from .user_tokenizer import UserTokenizer

logger = logging.getLogger(__name__)
EVEN_FOR_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


class Tokenizer:
    """Threads may share it."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        chat_template: str | None,
        added_tokens: tuple[AddedToken, ...] = (),
        *,
        tool_template: str | None = None,
        cleans_spaces: bool = False,
    ) -> None:
        """special_tokens: by name, such as "eos_token". added_tokens: tokens that an adapter added to the model's
        tokenizer; `backend` has them already. tool_template: for conversations with tools, where the model has another
        one for them. cleans_spaces: whether a whole text loses the spaces before its punctuation, which a stream of it
        keeps."""
        self._backend = backend
        self.special_tokens = special_tokens
        self.chat_template = chat_template
        self._tool_template = tool_template
        self.added_tokens = added_tokens
        self.cleans_spaces = cleans_spaces
        backend.no_truncation()
        backend.no_padding()

    def derive(
        self,
        added_tokens: tuple[AddedToken, ...],
        special_tokens: Mapping[str, str],
        chat_template: str | None,
        twin: "Tokenizer | None" = None,
    ) -> "Tokenizer":
        """Returns this tokenizer with an adapter's text. The template is not checked here. twin: a tokenizer with the
        same added tokens, whose backend is used again. Raises ValueError for tokens that cannot get their ids.
        """
        backend = self._backend if twin is None else twin._backend
        if added_tokens and twin is None:
            backend = _extended(backend, added_tokens)
        template, tool_template = self.chat_template, self._tool_template
        if chat_template is not None:
            template, tool_template = chat_template, None
        return Tokenizer(
            backend,
            {**self.special_tokens, **special_tokens},
            template,
            added_tokens,
            tool_template=tool_template,
            cleans_spaces=self.cleans_spaces,
        )

    @cached_property
    def for_users(self) -> UserTokenizer:
        return UserTokenizer(
            self._backend,
            self.special_tokens,
            self.chat_template,
            tool_template=self._tool_template,
            cleans_spaces=self.cleans_spaces,
        )

    @cached_property
    def special_contents(self) -> dict[int, str]:
        """The contents of the special tokens, by id."""
        added = self._backend.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in added.items() if token.special}

    @cached_property
    def _hiding(self) -> TokenDecoder:
        return TokenDecoder(partial(self._backend.decode, skip_special_tokens=True), self.special_contents)

    @cached_property
    def _showing(self) -> TokenDecoder:
        return TokenDecoder(partial(self._backend.decode, skip_special_tokens=False))

    @cached_property
    def first_token_id(self) -> int | None:
        """The special token that stands before every text, or None."""
        first = next(iter(self.encode("")), None)
        return first if first in self.special_contents else None

    def added_token_contents(self) -> dict[int, str]:
        """Returns the contents of all added tokens, by id."""
        return {token_id: token.content for token_id, token in self._backend.get_added_tokens_decoder().items()}

    def token_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id)

    def encode(self, text: str, add_special_tokens: bool = True, *, keep_last: int | None = None) -> list[int]:
        """keep_last: cuts a longer text on the left to this many tokens. Those that the tokenizer puts before every
        text, such as BOS, are kept and count."""
        # encode_batch releases the GIL while it works, so that a user's other threads go on; encode does not.
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        token_ids = list(encoding.ids)
        if keep_last is None or len(token_ids) <= keep_last:
            return token_ids
        num_first = next((index for index, is_put in enumerate(encoding.special_tokens_mask) if not is_put), 0)
        first = token_ids[: min(num_first, keep_last)]
        return first + token_ids[len(token_ids) - keep_last + len(first) :]

    @property
    def num_tokens(self) -> int:
        """One more than the largest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def serialized(self) -> str:
        """Returns the content of its tokenizer.json."""
        return str(self._backend.to_str())

    @property
    def eos_token_id(self) -> int | None:
        token = self.special_tokens.get("eos_token")
        return None if token is None else self._backend.token_to_id(token)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self.for_users.decode(token_ids, skip_special_tokens))

    def decode_token(self, token_id: int) -> str:
        return self._text_of_one(token_id)

    @cached_property
    def _text_of_one(self) -> Callable[[int], str]:
        return lru_cache(MAX_KEPT_TEXTS)(lambda token_id: self._backend.decode([token_id], skip_special_tokens=False))

    def decode_stream(self, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> TokenStream:
        return TokenStream(self._hiding if skip_special_tokens else self._showing, prompt_token_ids)

    def apply_chat_template(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Returns the prompt of a conversation. Raises InvalidRequest if the template refuses it or there is none."""
        return self.render(Chat.read({"messages": messages, "add_generation_prompt": add_generation_prompt}))

    def render(self, chat: Chat) -> str:
        """Returns the prompt of a conversation. Raises InvalidRequest if the template refuses it or there is none."""
        has_own = chat.tools is not None and self._tool_template is not None
        template = self._tool_template if has_own else self.chat_template
        text = render_chat(chat, template, self.special_tokens)
        if chat.tools is not None and chat.chat_template is None and template is not None:
            warn_of_unread_tools(template)
        return text


def _extended(backend: tokenizers.Tokenizer, added_tokens: Sequence[AddedToken]) -> tokenizers.Tokenizer:
    """Returns a tokenizer with more tokens that shares the vocabulary. Raises ValueError for a token that would get
    another id than its own: new ids are consecutive."""
    extended = tokenizers.Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "encode_special_tokens"):
        setattr(extended, part, getattr(backend, part))
    _add(extended, [token for _, token in sorted(backend.get_added_tokens_decoder().items())])
    _add(extended, [_backend_token(token) for token in added_tokens])
    for token in added_tokens:
        if extended.token_to_id(token.content) != token.id:
            raise ValueError(f"added token {token.content!r:.80} ({token.id}) leaves a gap in the ids before it")
    return extended


def _add(backend: tokenizers.Tokenizer, tokens: Sequence[tokenizers.AddedToken]) -> None:
    for is_special, group in groupby(tokens, _is_special):
        (backend.add_special_tokens if is_special else backend.add_tokens)(list(group))


def _is_special(token: AddedToken | tokenizers.AddedToken) -> bool:
    return bool(token.special)


def num_prepared_characters(tokens: Sequence[AddedToken]) -> int:
    """Returns the characters that the tokenizer processes to add these tokens. It adds a run of tokens of one kind,
    special or not, at a time, and each time prepares all earlier ones again."""
    sizes = (sum(len(token.content) for token in group) for _, group in groupby(tokens, _is_special))
    return sum(accumulate(sizes))


def _backend_token(token: AddedToken) -> tokenizers.AddedToken:
    flags = {name: getattr(token, name) for name in ("special", "lstrip", "rstrip", "single_word", "normalized")}
    return tokenizers.AddedToken(token.content, **flags)


def load_tokenizer(model: Path) -> Tokenizer:
    """model: a Hugging Face folder or a .gguf file. Raises UnsupportedModel if its files hold no usable tokenizer."""
    if not (model.is_dir() and (model / "tokenizer.json").exists()):
        return _convert(model)
    config = read_object(model / CONFIG_FILE)
    backend = _fast_tokenizer(model / "tokenizer.json")
    named = read_named_tokens(model, backend)
    _name_tokens(backend, named, model)
    backend.encode_special_tokens = bool(config.get("split_special_tokens"))
    template, tool_template = _read_templates(model, config)
    cleans_spaces = _cleans_spaces(backend, config)
    return Tokenizer(backend, named.special, template, tool_template=tool_template, cleans_spaces=cleans_spaces)


def _read_templates(model: Path, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Returns the templates for conversations without tools and with them; None for one that there is not."""
    files = {"default": model / TEMPLATE_FILE, "tool_use": model / "additional_chat_templates/tool_use.jinja"}
    if any(file.exists() for file in files.values()):  # then transformers does not look into the configuration
        default, tool_use = (file.read_text() if file.exists() else None for file in files.values())
        return default, tool_use
    return template_of(config), template_of(config, "tool_use")


def _name_tokens(backend: tokenizers.Tokenizer, named: NamedTokens, model: Path) -> None:
    backend.add_tokens(list(named.added))
    for content, token_id in named.ids.items():
        if (actual := backend.token_to_id(content)) != token_id:
            logger.warning("%s gives %r the id %d, but the next one is %s", model, content, token_id, actual)


def _cleans_spaces(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> bool:
    """Whether transformers removes spaces: not from BPE's text, where each space was meant, unless told so twice."""
    is_bpe = isinstance(backend.model, tokenizers.models.BPE)
    return bool(config.get("clean_up_tokenization_spaces")) and (not is_bpe or bool(config.get(EVEN_FOR_BPE)))


def _fast_tokenizer(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises no type of its own
        is_pointer = kind_of_model_file(file) == LFS_POINTER
        raise UnsupportedModel(
            f"{file} " + (f"is {LFS_POINTER}" if is_pointer else f"cannot be read: {error}")
        ) from error


def _convert(model: Path) -> Tokenizer:
    """Lets transformers build a fast tokenizer from the files that the model has."""
    from transformers import AutoTokenizer

    folder, options = (model, {}) if model.is_dir() else (model.parent, {"gguf_file": model.name})
    try:
        slow = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # each kind of tokenizer fails in its own way
        raise UnsupportedModel(f"{model} holds no tokenizer that transformers can convert: {error}") from error
    names = {name: str(token) for name, token in slow.special_tokens_map.items() if isinstance(token, str)}
    config = {"chat_template": slow.chat_template}
    tool_template = template_of(config, "tool_use")
    return Tokenizer(slow.backend_tokenizer, names, template_of(config), tool_template=tool_template)


def is_encodable(text: str) -> bool:
    """Returns False for text with a lone surrogate: half of the pair with which UTF-16 writes one character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
