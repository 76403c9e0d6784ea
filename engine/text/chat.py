"""Chat: a conversation and what its template is given besides, checked and in one form for all entry points.

A template may read any field of a message, so all fields are kept. As in vLLM, and unlike in transformers, a content of
None is an empty text, and arguments of tool calls that are JSON become mappings. The validator checks sizes, because
they depend on the model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from blora.proto.plain import BadValue, plain

from ..errors import InvalidRequest

Message = Mapping[str, Any]  # "role", "content" and whatever else the template reads

CONTENT_FORMATS = ("auto", "string", "openai")
# The fields that come first in every message, whatever their order in the user's: a template may print a whole message.
FIRST_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id")
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # type -> its field
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")  # names that templates have for one thing
OWN_VARIABLES = frozenset(
    ("messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize")
)
MAX_TEMPLATE_LENGTH = 64 << 10  # characters; the longest template of a model has half of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """The fields have the names of vLLM's arguments."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    chat_template: str | None = None  # None is the adapter's, or the model's
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    chat_template_content_format: str = "auto"
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @staticmethod
    def read(arguments: Mapping[str, Any]) -> "Chat":
        """Returns a checked copy of a user's arguments, by name; one that is missing or None has its default. Raises
        InvalidRequest."""
        given = {"messages": None} | {name: value for name, value in arguments.items() if value is not None}
        chat = Chat(**{name: _read(name, value) for name, value in given.items()})
        if chat.continue_final_message and chat.add_generation_prompt:
            reason = "cannot be true together with add_generation_prompt, which begins another message"
            raise InvalidRequest("continue_final_message", reason)
        return chat


CHAT_ARGUMENTS = tuple(part.name for part in fields(Chat) if part.name != "messages")


# Reading. A reader gets the place of a value, such as "messages[0].content", and raises BadValue.


def _read(name: str, value: Any) -> Any:
    try:
        return _READERS[name](name, value)
    except BadValue as error:
        raise InvalidRequest(name, f"{error.name.removeprefix(name):.200} {error.reason}".strip()) from error


def _read_messages(name: str, messages: Any) -> list[dict[str, Any]]:
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise BadValue(name, "is not a list of at least one message")
    return [_read_message(f"{name}[{index}]", message) for index, message in enumerate(messages)]


def _read_message(name: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadValue(name, f"is a {type(message).__name__} and no mapping with a 'role' and a 'content'")
    given = plain(name, message)
    given["content"] = _read_content(f"{name}.content", given.get("content"))
    if not given.get("role"):
        raise BadValue(f"{name}.role", "is missing")
    for key in ("role", "name", "tool_call_id"):
        if not isinstance(given.get(key), str | None):
            raise BadValue(f"{name}.{key}", "is not a text")
    given["tool_calls"] = _read_tool_calls(f"{name}.tool_calls", given.get("tool_calls"))
    first = {key: given[key] for key in FIRST_FIELDS if given.get(key) is not None}
    others = {key: value for key, value in given.items() if key not in FIRST_FIELDS}
    return first | others | _reasoning(given)


def _reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a message's reasoning under each of its names."""
    given = [message[key] for key in REASONING_FIELDS if message.get(key) is not None]
    return {key: message.get(key) or given[0] for key in REASONING_FIELDS} if given else {}


def _read_content(name: str, content: Any) -> str | list[dict[str, Any]]:
    if content is None or content == []:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadValue(name, "is neither a text nor a list of text parts")
    return [_read_part(f"{name}[{index}]", part) for index, part in enumerate(content)]


def _read_part(name: str, part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise BadValue(name, "is neither a text nor a part with a 'type' and a 'text'")
    kind = part.get("type", "text")
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        raise BadValue(name, f"is a part of type {kind!r:.80}; the model reads no other part than a text")
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise BadValue(f"{name}.{TEXT_PARTS[kind]}", "is not a text")
    others = {key: value for key, value in part.items() if key not in ("type", TEXT_PARTS[kind])}
    return {"type": "text", "text": text} | others


def _read_tool_calls(name: str, calls: Any) -> list[dict[str, Any]] | None:
    """An empty list is none: templates ask whether a message has tool calls, and not how many."""
    if calls is not None and not isinstance(calls, list):
        raise BadValue(name, "is not a list of tool calls")
    return [_read_tool_call(f"{name}[{index}]", call) for index, call in enumerate(calls or ())] or None


def _read_tool_call(name: str, call: Any) -> dict[str, Any]:
    """A call has its name and arguments in "function", as in OpenAI's API, or has them itself."""
    if not isinstance(call, dict) or call.get("type", "function") != "function":
        raise BadValue(name, "is not a mapping with a 'function'")
    if "function" not in call:
        return _with_arguments(name, call)
    if not isinstance(call["function"], dict):
        raise BadValue(f"{name}.function", "is not a mapping with a 'name' and 'arguments'")
    return call | {"function": _with_arguments(f"{name}.function", call["function"])}


def _with_arguments(name: str, function: dict[str, Any]) -> dict[str, Any]:
    """Returns a function whose arguments are a mapping, as templates expect them; OpenAI's API has them as JSON."""
    name, arguments = f"{name}.arguments", function.get("arguments")
    if isinstance(arguments, str) and arguments:
        arguments = plain(name, _parsed(name, arguments))
    if arguments and not isinstance(arguments, dict):
        raise BadValue(name, "is neither a mapping nor the JSON of one")
    return function | {"arguments": arguments or {}}


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of many thousand digits, too, is a ValueError
        raise BadValue(name, f"is not JSON: {error}") from error


def _read_tools(name: str, tools: Any) -> list[dict[str, Any]] | None:
    if isinstance(tools, str | bytes) or not isinstance(tools, Sequence):
        raise BadValue(name, "is not a list of tools")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            reason = f"is a {type(tool).__name__} and no mapping with the JSON schema of a function"
            raise BadValue(f"{name}[{index}]", reason)
    return plain(name, list(tools)) or None


def _read_template(name: str, template: Any) -> str:
    if not isinstance(template, str):
        raise BadValue(name, f"is a {type(template).__name__} and no text")
    if len(template) > MAX_TEMPLATE_LENGTH:
        raise BadValue(name, f"has {len(template)} characters, at most {MAX_TEMPLATE_LENGTH} are taken")
    return str(plain(name, template))


def _read_variables(name: str, variables: Any) -> dict[str, Any]:
    if not isinstance(variables, Mapping):
        raise BadValue(name, "is not a mapping of names to values")
    reserved = sorted(OWN_VARIABLES & set(variables))
    if reserved:
        raise BadValue(f"{name}.{reserved[0]}", "is an argument of its own")
    return dict(plain(name, variables))


def _read_format(name: str, form: Any) -> str:
    if form not in CONTENT_FORMATS:
        raise BadValue(name, f"is {form!r:.80} and none of {', '.join(CONTENT_FORMATS)}")
    return str(form)


def _read_flag(name: str, flag: Any) -> bool:
    if not isinstance(flag, bool):
        raise BadValue(name, f"is {flag!r:.80} and not a boolean")
    return flag


_READERS = {
    "messages": _read_messages,
    "tools": _read_tools,
    "chat_template": _read_template,
    "chat_template_kwargs": _read_variables,
    "chat_template_content_format": _read_format,
    "add_generation_prompt": _read_flag,
    "continue_final_message": _read_flag,
}
