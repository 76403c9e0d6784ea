"""UserTokenizer: a tokenizer in the hands of a user, with the names and defaults of transformers' tokenizers.

Serves what scripts use to make prompts and to read answers: calls on texts, conversions, special tokens, chat
templates. What training needs, such as padding and tensors, is refused by name. Imports no torch.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from blora.proto.plain import BadValue, plain

from ..errors import InvalidRequest
from .chat_rendering import render_messages
from .named_tokens import NAMES

# Words that leave a space before them, in the order in which transformers removes it.
UNSPACED = (".", "?", "!", ",", "' ", "n't", "'m", "'s", "'ve", "'re")
# Arguments of transformers' apply_chat_template that are no variables of the template.
TOKENIZING = (
    *("padding", "truncation", "max_length", "return_tensors", "tokenizer_kwargs"),
    *("return_assistant_tokens_mask", "sanitize_control_tokens"),
)
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class TokenizedText(dict[str, Any]):
    """`input_ids` and `attention_mask` of a text, or of several, by key or by attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class UserTokenizer:
    """The tokenizer of prompts for the model, or for an adapter that brings its own.

    Its names and defaults are those of a tokenizer of transformers; `bos_token`, `eos_token_id` and the like are None
    where there is no such token. For what is not served, `AutoTokenizer.from_pretrained` reads the same folder. `await`
    gives the tokenizer itself: in older versions of vLLM, `AsyncLLM.get_tokenizer` is a coroutine. Threads may
    share it.
    """

    is_fast = True

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        chat_template: str | None,
        *,
        tool_template: str | None = None,
        cleans_spaces: bool = False,
    ) -> None:
        """special_tokens: by name, such as "eos_token". tool_template: for conversations with tools."""
        self._backend = backend
        self._special_tokens = dict(special_tokens)
        self._chat_template = chat_template
        self._tool_template = tool_template
        self._cleans_spaces = cleans_spaces

    def __await__(self) -> Generator[Any, None, "UserTokenizer"]:
        return _itself(self).__await__()

    @property
    def chat_template(self) -> str | None:
        """The template of conversations. `chat` takes another one as an argument."""
        return self._chat_template

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        return self._backend

    # Texts to tokens.

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        return_attention_mask: bool = True,
        **unserved: Any,
    ) -> TokenizedText:
        """Returns `input_ids` and `attention_mask` of a text, or lists of these for several texts. Raises
        InvalidRequest for an argument of transformers that is not served."""
        _refuse(unserved)
        is_one = isinstance(text, str)
        rows = self._encode([text] if isinstance(text, str) else text, add_special_tokens)
        masks = [[1] * len(row) for row in rows]
        found = {"input_ids": rows, "attention_mask": masks} if return_attention_mask else {"input_ids": rows}
        return TokenizedText({name: values[0] if is_one else values for name, values in found.items()})

    def encode(self, text: str, add_special_tokens: bool = True, **unserved: Any) -> list[int]:
        """Raises InvalidRequest for an argument of transformers that is not served."""
        _refuse(unserved)
        return self._encode([text], add_special_tokens)[0]

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        return [str(self._backend.id_to_token(token_id)) for token_id in self.encode(text, add_special_tokens)]

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        if isinstance(texts, bytes) or not all(isinstance(text, str) for text in texts):
            raise InvalidRequest("text", "is neither a text nor a list of texts")
        # encode_batch releases the GIL while it works, so that a user's other threads go on; encode does not.
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [list(encoding.ids) for encoding in encodings]

    # Tokens to texts.

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """Returns the text of a token, or of a list, an array or a tensor of tokens; of several lists, their texts."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [ids] if isinstance(ids, int) else list(ids)
        if ids and hasattr(ids[0], "__len__"):
            return self.batch_decode(ids, skip_special_tokens, clean_up_tokenization_spaces)
        text = str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))
        return _cleaned(text) if self._is_cleaned(clean_up_tokenization_spaces) else text

    def batch_decode(
        self,
        sequences: Iterable[Any],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]

    def _is_cleaned(self, asked: bool | None) -> bool:
        """Whether a text loses spaces: BPE's does not even if asked, as each of its spaces was meant."""
        is_bpe = isinstance(self._backend.model, tokenizers.models.BPE)
        return self._cleans_spaces if asked is None or is_bpe else asked

    # Tokens and their ids.

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Returns the id of a token, or those of several; the unknown token's, or None, for what is no token."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        token_id = self._backend.token_to_id(tokens)
        return self._special_id("unk_token") if token_id is None else token_id

    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> Any:
        """Returns a token, or several; None for an id that is no token's."""
        if isinstance(ids, int):
            return self._backend.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._backend.id_to_token(int(token_id)) for token_id in ids if token_id not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        decoder = self._backend.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """The number of tokens without added ones; `len` counts all."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        return self._backend.get_vocab(with_added_tokens=True)

    def get_added_vocab(self) -> dict[str, int]:
        added = self._backend.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in sorted(added.items())}

    # Special tokens.

    def __getattr__(self, name: str) -> Any:
        special = self.__dict__.get("_special_tokens", {})
        if (token := name.removesuffix("_id")) in (*NAMES, *special):
            return special.get(token) if token == name else self._special_id(token)
        raise AttributeError(f"{name!r} of transformers' tokenizers is not served; AutoTokenizer has it")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NAMES:
            self._special_tokens[name] = value
        else:
            super().__setattr__(name, value)

    def _special_id(self, name: str) -> int | None:
        token = self._special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        return {name: token for name, token in self._special_tokens.items() if token is not None}

    @property
    def all_special_ids(self) -> list[int]:
        """The tokens that `skip_special_tokens` leaves out."""
        added = self._backend.get_added_tokens_decoder()
        return [token_id for token_id, token in sorted(added.items()) if token.special]

    @property
    def all_special_tokens(self) -> list[str]:
        return [str(self._backend.id_to_token(token_id)) for token_id in self.all_special_ids]

    # Conversations.

    def get_chat_template(self, chat_template: str | None = None, tools: Sequence[Any] | None = None) -> str:
        """Returns the template that renders a conversation with these tools. Raises InvalidRequest if there is none."""
        own = self._tool_template if tools is not None and self._tool_template is not None else self._chat_template
        source = own if chat_template is None else chat_template
        if source is None:
            raise InvalidRequest("chat_template", "the model has no chat template; give one as an argument")
        return source

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        return_dict: bool = True,
        **variables: Any,
    ) -> Any:
        """Renders a conversation, or a list of them, as transformers does: messages reach the template as they are,
        unlike in `chat`, which converts what vLLM converts.

        Returns what a call on the text returns; the token ids without return_dict, the text without tokenize. Raises
        InvalidRequest for a conversation that the template refuses.
        """
        _refuse({name: variables.pop(name) for name in TOKENIZING if name in variables})
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest("continue_final_message", "cannot be true together with add_generation_prompt")
        source = self.get_chat_template(chat_template, tools)
        if not conversation:
            raise InvalidRequest("conversation", "has no message")
        given = {"tools": _schemas(tools), "documents": documents, **self.special_tokens_map, **variables}
        given = {name: _plain(name, value) for name, value in given.items()}
        given["add_generation_prompt"] = add_generation_prompt
        continued = "content" if continue_final_message is True else continue_final_message or None
        is_one = isinstance(conversation[0], Mapping)
        chats = [conversation] if is_one else conversation
        texts = [_render(source, chat, given, continued) for chat in chats]
        if not tokenize:
            return texts[0] if is_one else texts
        tokenized = self(texts[0] if is_one else texts, add_special_tokens=False)
        return tokenized if return_dict else tokenized["input_ids"]


async def _itself(tokenizer: UserTokenizer) -> UserTokenizer:
    return tokenizer


def _refuse(arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise InvalidRequest(name, "is not served; AutoTokenizer.from_pretrained of the model's folder serves it")


def _cleaned(text: str) -> str:
    """Returns a text without the spaces that words would leave before punctuation and contractions."""
    for ending in UNSPACED:
        text = text.replace(f" {ending}", ending.rstrip(" "))
    return text


def _plain(name: str, value: Any) -> Any:
    try:
        return plain(name, value)
    except BadValue as error:
        raise InvalidRequest(name, f"{error.name.removeprefix(name):.200} {error.reason}".strip()) from error


def _schemas(tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None) -> list[Any] | None:
    """Returns tools as JSON schemas; a function's is made of its signature and its docstring."""
    if tools is None or all(isinstance(tool, Mapping) for tool in tools):
        return None if tools is None else list(tools)
    from transformers.utils import get_json_schema

    return [tool if isinstance(tool, Mapping) else get_json_schema(tool) for tool in tools]


def _render(source: str, chat: Sequence[Mapping[str, Any]], given: Mapping[str, Any], continued: str | None) -> str:
    messages = [_with_reasoning(message) for message in _plain("conversation", chat)]
    try:
        return render_messages(source, messages, given, continued)
    except InvalidRequest:
        raise
    except Exception as error:  # a template is a program, and may fail in any way
        raise InvalidRequest("conversation", f"the chat template refuses it: {error}") from error


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a message without the fields that are None, and its reasoning under the names that templates read."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = [given[key] for key in REASONING_FIELDS if key in given]
    return {"thinking": reasoning[0], **given, "reasoning_content": reasoning[0]} if reasoning else given
