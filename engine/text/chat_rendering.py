"""Renders a Chat with a chat template: the one way from a conversation to the text of a prompt.

As in vLLM, a content of parts is joined where the template prints a text, and a text becomes a part where the template
takes parts only. A template that takes both gets contents as they are, which is what transformers gives it.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..errors import InvalidRequest
from .chat import Chat
from .chat_template import ContentUse, check_template, content_use, render_template

END_MARK = "END_OF_THE_TEXT_TO_CONTINUE "  # the space shows whether a template trims texts


def render_chat(chat: Chat, template: str | None, special_tokens: Mapping[str, str]) -> str:
    """Returns the prompt of a conversation. template: of the model or an adapter, for a chat without its own, which is
    checked here. Raises InvalidRequest when the template refuses the conversation, or there is none."""
    source = chat.chat_template if chat.chat_template is not None else template
    if source is None:
        reason = "the model has no chat template; send a prompt instead, or a chat_template with the messages"
        raise InvalidRequest("messages", reason)
    if chat.chat_template is not None:
        _check_own(source)
    try:
        return _render(chat, source, special_tokens)
    except InvalidRequest:
        raise
    except Exception as error:  # a template is a program, and may fail in any way
        raise InvalidRequest("messages", f"the chat template refuses them: {error}") from error


@lru_cache(maxsize=64)  # a program that brings one template brings it with each conversation, and checks take long
def _check_own(source: str) -> None:
    try:
        check_template(source)
    except ValueError as error:
        raise InvalidRequest("chat_template", str(error)) from error


def _render(chat: Chat, source: str, special_tokens: Mapping[str, str]) -> str:
    use = content_use(source)
    form = _form_for(use) if chat.chat_template_content_format == "auto" else chat.chat_template_content_format
    messages = [{**message, "content": _content(message, form, use.asks_for_none)} for message in chat.messages]
    if chat.continue_final_message:
        messages[-1]["content"] = _content(chat.messages[-1], form)
    variables = {"documents": None, **special_tokens, **chat.chat_template_kwargs}
    variables |= {"tools": chat.tools, "add_generation_prompt": chat.add_generation_prompt}
    return render_messages(source, messages, variables, "content" if chat.continue_final_message else None)


def render_messages(
    source: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], continued: str | None
) -> str:
    """Returns the text of messages as they are. continued: the field of the last message that the answer continues.
    Raises what the template raises, and InvalidRequest."""
    if continued is None:
        return render_template(source, **variables, messages=messages)
    *others, last = messages
    final = last.get(continued)
    if final is None:
        raise InvalidRequest("continue_final_message", f"the final message has no {continued!r} to continue")
    text = render_template(source, **variables, messages=[*others, {**last, continued: _marked(final)}])
    return _cut(text, (_texts(final) or [""])[-1])


def _form_for(use: ContentUse) -> str:
    if not use.loops:
        return "string"
    return "either" if use.asks_for_text else "openai"


def _content(message: Mapping[str, Any], form: str, asks_for_none: bool = False) -> Any:
    """Returns a message's content as a template expects it. The answers of tools are texts: nearly all templates print
    them as such. None stands beside tool calls only: other templates would print it."""
    content, has_texts = message["content"], form == "string" or message["role"] == "tool"
    if not content and asks_for_none and "tool_calls" in message:
        return None
    if isinstance(content, list):
        return "\n".join(_texts(content)) if has_texts else content
    if form != "openai" or has_texts:
        return str(content)
    return [{"type": "text", "text": content}] if content else []


def _texts(content: str | Iterable[Mapping[str, Any]]) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content]


def _marked(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content + END_MARK
    *others, last = content or [{"type": "text", "text": ""}]
    return [*others, last | {"text": last["text"] + END_MARK}]


def _cut(text: str, final: str) -> str:
    """Returns the text up to the end of the final message, without the end of its turn that the template adds. As in
    transformers, a template that trims texts trims this end, too."""
    before, mark, after = text.rpartition(END_MARK.rstrip())
    if not mark or final.strip() not in before:
        raise InvalidRequest("continue_final_message", "the chat template leaves out or changes the final message")
    return before if after.startswith(" ") else before.rstrip()
