"""Conversations of a Python client as messages of the wire.

Every field of a message is sent, or refused by its name: a template may read any of them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .plain import BadValue, plain
from .v1 import generation_pb2

# What a chat template is given besides the messages.
CHAT_OPTIONS = tuple(name for name in generation_pb2.ChatMessages.DESCRIPTOR.fields_by_name if name != "messages")


def to_chat(messages: Sequence[Any], options: Mapping[str, Any]) -> generation_pb2.ChatMessages:
    """options: by their names in CHAT_OPTIONS; None is the default. Raises ValueError naming what cannot be sent."""
    chat = generation_pb2.ChatMessages(messages=_each("messages", messages, _message))
    for name, value in options.items():
        if value is not None:
            chat.MergeFrom(_option(name, value))
    return chat


def _option(name: str, value: Any) -> generation_pb2.ChatMessages:
    if name == "tools":
        value = _each(name, value, _json)
    elif name == "chat_template_kwargs":
        value = _json(name, value)
    try:
        return generation_pb2.ChatMessages(**{name: value})
    except (TypeError, ValueError) as error:  # the error does not name the field
        raise ValueError(f"{name}: {error}") from error


def _each(name: str, values: Any, convert: Any) -> list[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise BadValue(name, f"is a {type(values).__name__} and no list")
    return [convert(f"{name}[{index}]", value) for index, value in enumerate(values)]


def _json(name: str, value: Any) -> str:
    return json.dumps(plain(name, value), ensure_ascii=False)


def _others(name: str, fields: Mapping[str, Any]) -> str:
    return _json(name, fields) if fields else ""


def _message(name: str, message: Any) -> generation_pb2.ChatMessage:
    if not isinstance(message, Mapping):
        raise BadValue(name, f"is a {type(message).__name__} and no mapping with a 'role' and a 'content'")
    fields = plain(name, message)
    content, calls = fields.pop("content", None), fields.pop("tool_calls", None)
    texts = {key: _text(f"{name}.{key}", fields.pop(key, None)) for key in ("role", "name", "tool_call_id")}
    if not texts["role"]:
        raise BadValue(f"{name}.role", "is missing")
    if not isinstance(content, str | list | None):
        raise BadValue(f"{name}.content", "is neither a text nor a list of text parts")
    return generation_pb2.ChatMessage(
        **texts,
        content=content if isinstance(content, str) else "",
        parts=_each(f"{name}.content", content, _part) if isinstance(content, list) else [],
        tool_calls=_each(f"{name}.tool_calls", [] if calls is None else calls, _json),
        other_fields=_others(name, fields),
    )


def _text(name: str, value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise BadValue(name, "is not a text")
    return value


def _part(name: str, part: Any) -> generation_pb2.ContentPart:
    """What is no part of text is sent, too: the server knows what it can read."""
    if isinstance(part, str):
        return generation_pb2.ContentPart(text=part)
    if not isinstance(part, dict):
        raise BadValue(name, "is neither a text nor a part with a 'type' and a 'text'")
    others = {key: value for key, value in part.items() if key != "text" and (key, value) != ("type", "text")}
    return generation_pb2.ContentPart(text=_text(f"{name}.text", part.get("text")), other_fields=_others(name, others))
