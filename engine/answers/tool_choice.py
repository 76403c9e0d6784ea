"""ToolChoice: which tools a request allows or demands, checked, and the JSON schema that a demand makes.

Raises InvalidRequest with the name of the argument of OpenAI's API.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..errors import InvalidRequest

MODES = ("none", "auto", "required")
MAX_TOOLS = 1024  # of a request; OpenAI takes 128
MAX_NAME_LENGTH = 256  # characters; OpenAI takes 64


class Mode(Enum):
    NONE = "none"  # no calls; what looks like one is text
    AUTO = "auto"  # the model decides
    REQUIRED = "required"  # a call at least
    NAMED = "named"  # one call, of one tool


@dataclass(frozen=True, slots=True)
class ToolChoice:
    mode: Mode = Mode.NONE
    tools: tuple[Mapping[str, Any], ...] = ()  # the functions that may be called
    is_parallel: bool = True  # False allows one call at most

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool["name"] for tool in self.tools)

    @property
    def schema(self) -> dict[str, Any] | None:
        """The schema of an answer with a demanded call; None if none is demanded."""
        if self.mode is Mode.NAMED:
            return _parameters(self.tools[0])
        if self.mode is not Mode.REQUIRED:
            return None
        calls = {"type": "array", "minItems": 1, "items": {"anyOf": [_call(tool) for tool in self.tools]}}
        return calls if self.is_parallel else calls | {"maxItems": 1}

    @staticmethod
    def read(tools: Any, choice: Any, parallel: Any) -> "ToolChoice":
        """Reads `tools`, `tool_choice` and `parallel_tool_calls`; each may be None."""
        functions = _functions(tools)
        if not isinstance(parallel, bool | None):
            raise InvalidRequest("parallel_tool_calls", f"is {parallel!r:.80} and not a boolean")
        is_parallel = parallel is not False
        if isinstance(choice, Mapping):
            return ToolChoice(Mode.NAMED, (_named(functions, choice),), is_parallel)
        if choice is not None and choice not in MODES:
            reason = f"is {choice!r:.80} and neither one of {', '.join(MODES)} nor the name of a function"
            raise InvalidRequest("tool_choice", reason)
        if choice == "required" and not functions:
            raise InvalidRequest("tool_choice", "is 'required', and there are no tools")
        mode = Mode(choice or "auto") if functions else Mode.NONE
        return ToolChoice(mode, functions, is_parallel)


def _functions(tools: Any) -> tuple[Mapping[str, Any], ...]:
    if tools is None:
        return ()
    if isinstance(tools, str | bytes) or not isinstance(tools, Sequence):
        raise InvalidRequest("tools", "is not a list of tools")
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest("tools", f"are {len(tools)}; at most {MAX_TOOLS} are taken")
    functions = tuple(_function(f"[{index}]", tool) for index, tool in enumerate(tools))
    counts = Counter(function["name"] for function in functions)  # in one pass: names may be many
    twice = next((name for name, number in counts.items() if number > 1), None)
    if twice is not None:
        raise InvalidRequest("tools", f"has {twice!r:.80} more than once")
    return functions


def _function(place: str, tool: Any) -> Mapping[str, Any]:
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        raise InvalidRequest("tools", f"{place} is no tool of type 'function'; others are not served")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequest("tools", f"{place}.function is no mapping with a name and parameters")
    name = function.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH:
        raise InvalidRequest("tools", f"{place}.function.name is not a text of 1 to {MAX_NAME_LENGTH} characters")
    if not isinstance(function.get("parameters"), Mapping | None):
        raise InvalidRequest("tools", f"{place}.function.parameters is no JSON schema")
    return function


def _named(functions: Sequence[Mapping[str, Any]], choice: Mapping[str, Any]) -> Mapping[str, Any]:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if choice.get("type", "function") != "function" or not isinstance(name, str):
        raise InvalidRequest("tool_choice", 'is not {"type": "function", "function": {"name": ...}}')
    found = next((one for one in functions if one["name"] == name), None)
    if found is None:
        raise InvalidRequest("tool_choice", f"names the function {name!r:.80}, which is not among the tools")
    return found


def _call(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "const": tool["name"]}, "parameters": _parameters(tool)},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema of a tool's arguments. OpenAI's API leaves it out for a tool without parameters."""
    return {"type": "object"} | dict(tool.get("parameters") or {"properties": {}, "additionalProperties": False})
