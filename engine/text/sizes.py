"""Sizes of the texts of a prompt: how much of one is read at all. One that cannot fit is not tokenised."""

from ..errors import InvalidRequest
from ..facts import Facts
from .chat import Chat
from .tokenizer import is_encodable

MAX_BYTES_PER_TOKEN = 16  # limit on the text of a prompt; a longer one cannot fit, and would take long to tokenise
MIN_READ = 1 << 16  # characters of a conversation's tools, or of all its fields, that are read for any model


def check_text(text: object, facts: Facts) -> str:
    """Checks a prompt of text before it is tokenised; returns it. Raises InvalidRequest."""
    if not isinstance(text, str) or not text:
        raise InvalidRequest("prompt", "is not a text of at least one character")
    if len(text) > facts.max_model_len * MAX_BYTES_PER_TOKEN:
        raise InvalidRequest("prompt", f"{len(text)} characters cannot fit into {facts.max_model_len} tokens")
    if not is_encodable(text):
        raise InvalidRequest("prompt", "is not valid Unicode: it holds a lone surrogate")
    return text


def text_to_read(text: str, keep_last: int | None, facts: Facts) -> str:
    """Returns the part of a text that is tokenised: all of it, or an end that has more tokens than are kept. Raises
    InvalidRequest."""
    return check_text(text if keep_last is None else text[-facts.max_model_len * MAX_BYTES_PER_TOKEN :], facts)


def check_chat(chat: Chat, facts: Facts) -> None:
    """Checks the size of a conversation before its template is rendered: one that cannot fit is not rendered. A
    template may leave out what is neither a role nor a content. Raises InvalidRequest."""
    num_tokens, most = facts.max_model_len, facts.max_model_len * MAX_BYTES_PER_TOKEN
    num_said = sum(num_characters([message["role"], message["content"]]) for message in chat.messages)
    if len(chat.messages) > num_tokens or num_said > most:
        raise InvalidRequest("messages", f"{len(chat.messages)} messages cannot fit into {num_tokens} tokens")
    for name in ("messages", "tools", "chat_template_kwargs"):
        num_given, most_read = num_characters(getattr(chat, name)), max(4 * most, MIN_READ)
        if num_given > most_read:
            raise InvalidRequest(name, f"{num_given} characters in all fields, at most {most_read} are read")


def num_characters(value: object) -> int:
    """Returns the length of a plain value's texts; anything else in it counts as one character."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(len, value)) + sum(map(num_characters, value.values()))
    return 1 + sum(map(num_characters, value)) if isinstance(value, list) else 1
