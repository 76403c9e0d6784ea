"""TextWork: all that has to be tokenised for one request, and the one way to do it, in this process or in another.

Text that takes long is worked on in a process of its own: in the front end all streams would wait for it. Templates of
strangers run there however short the conversation is.
"""

from dataclasses import dataclass, replace

from blora.adapters import AdapterText

from ..errors import InvalidRequest
from ..facts import Facts
from .bad_words import spellings
from .chat import Chat
from .sizes import check_chat, num_characters, text_to_read
from .tokenizer import Tokenizer
from .wire_chat import WireChat

MOST_HERE = 4096  # characters that the front end works on itself: a millisecond
# What a message and a bad word count as, besides their characters: a template's lines are watched while it runs.
MESSAGE_WEIGHT, WORD_WEIGHT = 256, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TextWork:
    text: str | None = None  # of a prompt, or of a rendered conversation; None where there is a conversation, or none
    chat: Chat | None = None
    wire_chat: WireChat | None = None
    is_rendered: bool = False  # a template writes the special tokens itself
    keep_last: int | None = None  # a longer prompt is cut on the left to so many tokens
    bad_words: tuple[str, ...] = ()

    @property
    def weight(self) -> int:
        """The characters that would take as long."""
        words = sum(map(len, self.bad_words)) + WORD_WEIGHT * len(self.bad_words)
        return (
            len(self.text or "") + _weight_of(self.chat) + len(self.wire_chat.data if self.wire_chat else b"") + words
        )

    @property
    def brings_template(self) -> bool:
        if self.wire_chat is not None:
            return self.wire_chat.has_template
        return self.chat is not None and self.chat.chat_template is not None

    @property
    def field(self) -> str:
        """The argument to change when the work takes too long."""
        if self.brings_template:
            return "chat_template"
        return "prompt" if self.text is not None else "messages"


@dataclass(frozen=True, slots=True)
class TextTokens:
    prompt: list[int]  # empty where there was no text
    bad_sequences: tuple[tuple[int, ...], ...]


def _weight_of(chat: Chat | None) -> int:
    if chat is None:
        return 0
    size = num_characters([chat.messages, chat.tools, chat.chat_template_kwargs])
    return size + MESSAGE_WEIGHT * (len(chat.messages) + len(chat.tools or ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOrder:
    """Work for another process."""

    work: TextWork
    text: AdapterText | None  # what makes the tokenizer of an adapter of the model's; None is the model's
    runs_strange_template: bool  # of a request or an adapter


def start_work(work: TextWork, tokenizer: Tokenizer, base: Tokenizer, facts: Facts) -> TextTokens | TextOrder:
    """Does the work if it is short and runs no template of a stranger; otherwise returns it as an order. For callers
    whom others wait for. base: the model's tokenizer. Raises InvalidRequest."""
    is_chat = work.chat is not None or work.wire_chat is not None
    is_strange = is_chat and (work.brings_template or tokenizer.chat_template != base.chat_template)
    is_short = work.weight <= MOST_HERE and work.wire_chat is None and not is_strange
    if is_short:
        work = render(work, tokenizer, facts)  # a short conversation may become a long text
        if work.weight <= MOST_HERE:
            return tokenize(work, tokenizer, facts)
    text = None if tokenizer is base else _text_of(tokenizer, base)
    return TextOrder(work=work, text=text, runs_strange_template=is_strange)


def _text_of(tokenizer: Tokenizer, base: Tokenizer) -> AdapterText:
    template = None if tokenizer.chat_template == base.chat_template else tokenizer.chat_template
    return AdapterText(tokenizer.added_tokens, tuple(tokenizer.special_tokens.items()), template)


def tokenizer_of(text: AdapterText | None, base: Tokenizer) -> Tokenizer:
    """Returns the tokenizer of an order."""
    return base if text is None else base.derive(text.added_tokens, dict(text.special_tokens), text.chat_template)


def render(work: TextWork, tokenizer: Tokenizer, facts: Facts) -> TextWork:
    """Returns work without a conversation: its text instead. Raises InvalidRequest."""
    if work.wire_chat is not None:
        chat = Chat.read(work.wire_chat.arguments())
        check_chat(chat, facts)
        return render(replace(work, wire_chat=None, chat=chat), tokenizer, facts)
    if work.chat is None:
        return work
    text = text_to_read(tokenizer.render(work.chat), work.keep_last, facts)
    return replace(work, chat=None, text=text, is_rendered=True)


def tokenize(work: TextWork, tokenizer: Tokenizer, facts: Facts) -> TextTokens:
    """Raises InvalidRequest."""
    bad = spellings(work.bad_words, tokenizer)
    text = render(work, tokenizer, facts).text
    if text is None:
        return TextTokens([], bad)
    is_plain = work.text is not None and not work.is_rendered
    prompt = tokenizer.encode(text, add_special_tokens=is_plain, keep_last=work.keep_last)
    if len(prompt) > facts.max_model_len:  # before they are sent or copied
        raise InvalidRequest("prompt", f"{len(prompt)} tokens are more than the {facts.max_model_len} allowed")
    return TextTokens(prompt, bad)
