"""A conversation as it came over a wire, protobuf or JSON -> the dict that the engine takes as a prompt.

Values of any type are JSON in protobuf. What they may be is checked with the conversation, for in-process callers too.
A long conversation stays bytes until a process that no other request waits for converts it.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from blora.proto.v1 import generation_pb2

from ..errors import InvalidRequest

# In one request. Both are small on the wire and large as Python's objects.
MAX_ITEMS = 1 << 15  # messages, parts, tools and tool calls
MAX_JSON = 1 << 20  # characters
OWN_FIELDS = frozenset(("role", "content", "name", "tool_calls", "tool_call_id"))
TEMPLATE_VARIABLES = ("documents", "reasoning_effort")  # have fields of their own in JSON


@dataclass(frozen=True, slots=True)
class WireChat:
    """A conversation as it came over the wire, in a prompt under "wire_chat"."""

    data: bytes  # of a blora.v1.ChatMessages, or of a JSON object with the arguments of `chat`
    has_template: bool
    form: Literal["protobuf", "json"] = "protobuf"

    @staticmethod
    def of(chat: generation_pb2.ChatMessages) -> "WireChat":
        return WireChat(chat.SerializeToString(), has_template=False)

    def arguments(self) -> dict[str, Any]:
        """Raises InvalidRequest."""
        if self.form == "json":
            return _json_chat(self.data)
        return chat_prompt(generation_pb2.ChatMessages.FromString(self.data))


def _json_chat(data: bytes) -> dict[str, Any]:
    """Returns "messages" and the arguments, with the variables of the template among each other."""
    given = _parsed("messages", "", data)
    own = {name: given.pop(name) for name in TEMPLATE_VARIABLES if name in given}
    others = given.get("chat_template_kwargs")
    if own and isinstance(others, dict | None):
        given["chat_template_kwargs"] = own | (others or {})
    return dict(given)


def chat_prompt(chat: generation_pb2.ChatMessages) -> dict[str, Any]:
    """Returns "messages" and the arguments that the client has set, by their names, which message and engine share.
    Raises InvalidRequest."""
    _check_size(chat)
    if not chat.messages:
        raise InvalidRequest("chat", "has no messages")
    if not all(message.role for message in chat.messages):
        raise InvalidRequest("chat", "has a message without a role")
    given = {field.name: value for field, value in chat.ListFields() if field.name != "messages"}
    if "tools" in given:
        given["tools"] = [_parsed("tools", f"[{index}]", tool) for index, tool in enumerate(chat.tools)]
    if "chat_template_kwargs" in given:
        given["chat_template_kwargs"] = _parsed("chat_template_kwargs", "", chat.chat_template_kwargs)
    return {"messages": [_message(f"[{index}]", message) for index, message in enumerate(chat.messages)], **given}


def check_num_items(num_items: int) -> None:
    """Raises InvalidRequest for more messages, parts and tools than are read."""
    if num_items > MAX_ITEMS:
        raise InvalidRequest("chat", f"has {num_items} messages, parts and tools; at most {MAX_ITEMS} are read")


def _check_size(chat: generation_pb2.ChatMessages) -> None:
    num_items = len(chat.tools) + len(chat.messages)
    num_items += sum(len(message.parts) + len(message.tool_calls) for message in chat.messages)
    check_num_items(num_items)
    num_characters = sum(map(len, chat.tools)) + len(chat.chat_template_kwargs)
    for message in chat.messages:
        num_characters += len(message.other_fields) + sum(map(len, message.tool_calls))
        num_characters += sum(len(part.other_fields) for part in message.parts)
    if num_characters > MAX_JSON:
        raise InvalidRequest("chat", f"has {num_characters} characters of JSON; at most {MAX_JSON} are read")


def _message(place: str, message: generation_pb2.ChatMessage) -> dict[str, Any]:
    if message.content and message.parts:
        raise InvalidRequest("messages", f"{place}.parts are given besides content; send one of the two")
    calls = [_parsed("messages", f"{place}.tool_calls[{i}]", call) for i, call in enumerate(message.tool_calls)]
    parts = [_part(f"{place}.parts[{index}]", part) for index, part in enumerate(message.parts)]
    texts = {name: getattr(message, name) for name in ("name", "tool_call_id") if message.HasField(name)}
    others = _others(place, message.other_fields)
    if OWN_FIELDS & others.keys():
        reason = f"{place}.other_fields has {min(OWN_FIELDS & others.keys())!r}, which is a field of its own"
        raise InvalidRequest("messages", reason)
    own = {"role": message.role, "content": parts or message.content, **texts}
    return own | ({"tool_calls": calls} if calls else {}) | others


def _part(place: str, part: generation_pb2.ContentPart) -> dict[str, Any]:
    return ({"text": part.text} if part.HasField("text") else {}) | _others(place, part.other_fields)


def _others(place: str, text: str) -> dict[str, Any]:
    others = _parsed("messages", f"{place}.other_fields", text) if text else {}
    if not isinstance(others, dict):
        raise InvalidRequest("messages", f"{place}.other_fields is not the JSON of an object")
    return others


def _parsed(field: str, place: str, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of many thousand digits, too, is a ValueError
        raise InvalidRequest(field, f"{place} is not JSON: {error}".strip()) from error
