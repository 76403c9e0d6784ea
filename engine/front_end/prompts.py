"""PromptReader: takes every form of prompt apart, into tokens or the work that leads to them. Owns which forms there
are. Imports no torch."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InvalidRequest
from ..facts import Facts
from ..text.chat import CHAT_ARGUMENTS, Chat
from ..text.sizes import check_chat, text_to_read
from ..text.text_work import TextTokens, TextWork
from ..text.tokenizer import Tokenizer
from ..text.wire_chat import WireChat
from .calls import ENCODING_KEYS, Prompt, is_array
from .validator import as_token_ids, check_count, check_salt

logger = logging.getLogger(__name__)

# The key of a prompt that is a dict -> the keys that may stand beside it.
PROMPT_FORMS: dict[str, tuple[str, ...]] = {
    "prompt_token_ids": ("prompt",),
    "prompt": (),
    "messages": CHAT_ARGUMENTS,
    "input_ids": ENCODING_KEYS,
}


# Parts of vLLM's prompts that are not served -> the reason.
UNSERVED_PARTS = {
    "multi_modal_data": "blora serves text",
    "multi_modal_uuids": "blora serves text",
    "mm_processor_kwargs": "blora serves text",
    "prompt_embeds": "a prompt is a text or tokens",
    "encoder_prompt": "blora serves no models with an encoder",
    "decoder_prompt": "blora serves no models with an encoder",
}


MAX_TOKEN_ID = 1 << 32  # what the tokenizers library can be asked for
SECOND_BOS = (
    "a prompt begins with %r, and the tokenizer puts another one before every text; two of them harm the answer. Leave "
    "it out of the text; of a conversation, give the messages to chat(), or the text's tokens to generate(): "
    "{'prompt_token_ids': tokenizer.encode(text, add_special_tokens=False)}"
)


@dataclass(frozen=True, slots=True)
class PromptParts:
    """A prompt taken apart and checked, before anything is tokenised."""

    text: str | None  # as outputs show it; None for tokens and for a conversation
    token_ids: list[int] | None  # None where they come of `work`
    work: TextWork
    salt: bytes = b""


class PromptReader:
    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._noticed_second_bos = False

    def take_apart(self, prompt: Prompt, work: TextWork) -> PromptParts:
        """work: what is to do besides the prompt's text, and how many of its tokens are kept. Raises InvalidRequest."""
        if not isinstance(prompt, Mapping):
            return self._text_or_tokens(prompt, work, b"")
        return self._take_mapping(prompt, work, check_salt(prompt.get("cache_salt")))

    def _take_mapping(self, prompt: Mapping[str, Any], work: TextWork, salt: bytes) -> PromptParts:
        match form_of(prompt):
            case "wire_chat":
                return PromptParts(None, None, replace(work, wire_chat=prompt["wire_chat"]), salt)
            case "messages":
                return PromptParts(None, None, replace(work, chat=self._read_chat(prompt)), salt)
            case "input_ids":
                return PromptParts(None, self._read_tokens("input_ids", _unpadded(prompt), work.keep_last), work, salt)
            case "prompt":
                return self._text_or_tokens(prompt["prompt"], work, salt)
        shown = prompt.get("prompt")
        if shown is not None and not isinstance(shown, str):
            raise InvalidRequest("prompt", f"{type(shown).__name__} is not the text of the tokens beside it")
        token_ids = self._read_tokens("prompt_token_ids", prompt["prompt_token_ids"], work.keep_last)
        return PromptParts(shown, token_ids, work, salt)

    def _read_chat(self, prompt: Mapping[str, Any]) -> Chat:
        chat = Chat.read({name: value for name, value in prompt.items() if name != "cache_salt"})
        check_chat(chat, self._facts)
        return chat

    def _text_or_tokens(self, prompt: Any, work: TextWork, salt: bytes) -> PromptParts:
        if not isinstance(prompt, str):
            return PromptParts(None, self._read_tokens("prompt", prompt, work.keep_last), work, salt)
        text = text_to_read(prompt, work.keep_last, self._facts)
        return PromptParts(prompt, None, replace(work, text=text), salt)

    def token_ids(self, parts: PromptParts, tokens: TextTokens, tokenizer: Tokenizer) -> list[int]:
        """Returns the tokens of a prompt. tokens: what `parts.work` came to."""
        if parts.token_ids is not None:
            return parts.token_ids
        if parts.text is not None:
            self._notice_second_bos(tokens.prompt, tokenizer)
        return tokens.prompt

    def _notice_second_bos(self, token_ids: Sequence[int], tokenizer: Tokenizer) -> None:
        """Says once that a text, such as a rendered conversation, brings the BOS that the tokenizer puts before it."""
        bos = tokenizer.first_token_id
        if bos is not None and not self._noticed_second_bos and token_ids[:2] == [bos, bos]:
            self._noticed_second_bos = True
            logger.warning(SECOND_BOS, tokenizer.token(bos))

    def _read_tokens(self, name: str, tokens: Any, keep_last: int | None) -> list[int]:
        tokens = _one_row(name, tokens)
        if isinstance(tokens, str | bytes) or not (isinstance(tokens, Sequence) or is_array(tokens)):
            raise InvalidRequest(name, f"{type(tokens).__name__} is not a text, token ids or a dict of these")
        if keep_last is None:  # before the tokens are copied
            check_count(name, len(tokens), self._facts.max_model_len)
        values = tokens.tolist() if is_array(tokens) else list(tokens)
        return as_token_ids(name, values if keep_last is None else values[-keep_last:])


def check_has_rows(token_ids: Sequence[int], tokenizer: Tokenizer, facts: Facts) -> None:
    """Raises InvalidRequest for a token of the tokenizer, often one that only pads, which the model has no row for. An
    id that is no token's is left to the validator."""
    last = max(token_ids, default=0)
    if facts.vocab_size <= last < MAX_TOKEN_ID and (token := tokenizer.token(last)) is not None:
        reason = (
            f"holds {token!r:.80}, the token {last}, and the model's vocabulary has {facts.vocab_size}: leave it out"
        )
        raise InvalidRequest("prompt", reason)


def form_of(prompt: Mapping[str, Any]) -> str:
    """Returns the key of what is to be read. Keys without a value count as absent. Raises InvalidRequest."""
    if isinstance(prompt.get("wire_chat"), WireChat):  # from the server only
        return "wire_chat"
    given = {name for name, value in prompt.items() if value is not None}
    unserved = given & UNSERVED_PARTS.keys()
    if unserved:
        name = min(unserved)
        raise InvalidRequest(name, f"is not served: {UNSERVED_PARTS[name]}")
    form = next((name for name in PROMPT_FORMS if name in given), None)
    if form is None or given - {form, *PROMPT_FORMS[form], "cache_salt"}:
        raise InvalidRequest("prompt", f"give one of {', '.join(PROMPT_FORMS)}, and cache_salt if wanted")
    return form


def _one_row(name: str, tokens: Any) -> Any:
    """Returns the only row of an array that is a batch of one, as tokenizers make them, and anything else as it is."""
    if not is_array(tokens) or tokens.ndim == 1:
        return tokens
    if tokens.ndim != 2 or len(tokens) != 1:
        raise InvalidRequest(name, f"an array of the shape {tuple(tokens.shape)} is not one prompt")
    return tokens[0]


def _unpadded(encoding: Mapping[str, Any]) -> Any:
    """Returns the tokens of an encoding without those that its attention mask leaves out."""
    tokens, mask = (_listed(encoding.get(name)) for name in ("input_ids", "attention_mask"))
    if mask is None:
        return tokens
    if not isinstance(tokens, list) or not isinstance(mask, list) or len(mask) != len(tokens):
        raise InvalidRequest("attention_mask", "does not have one number for each of input_ids")
    return [token for token, is_read in zip(tokens, mask, strict=True) if is_read]


def _listed(value: Any) -> Any:
    """Returns an array's values, and those of a list of one list, as one list."""
    value = value.tolist() if is_array(value) else value
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value
