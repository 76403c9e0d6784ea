"""AnswerForm, the formats that templates show, and the choice of tools."""

import re
from typing import Any

import jsonschema
import pytest

from blora.engine.answers.answer_form import AnswerForm, AnswerFormats
from blora.engine.answers.formats import CALL_FORMATS, call_format, reasoning_format
from blora.engine.answers.pieces import Arguments, CallStart, Content
from blora.engine.answers.tool_choice import Mode, ToolChoice
from blora.engine.errors import InvalidRequest

# What the templates of models say, as it stands in their files.
QWEN = (
    r"in <tool_call></tool_call>:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}"
    r"\n</tool_call>{{- '<think>\n' + reasoning_content + '\n</think>\n\n' }}"
)
HERMES = r"For each call return JSON:\n<tool_call>\n{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>"
HERMES_IN_PARTS = """{{- "<tool_call>\n" }}
    {{- '{"name": <function-name>, "arguments": <args-dict>}\n' }}"""
LLAMA = 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
MISTRAL = '{{- "[TOOL_CALLS] [" }}'
QWEN_CODER = "<tool_call>\n<function=example_function_name>\n<parameter=example>"
GLM = '<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key> {"name": 1}'
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.mark.parametrize(
    "template, calls, reasoning",
    [
        (QWEN, "hermes", "qwen3"),
        (HERMES, "hermes", None),
        (HERMES_IN_PARTS, "hermes", None),
        (LLAMA, "llama3_json", None),
        (MISTRAL, "mistral", None),
        (QWEN_CODER, None, None),
        (GLM, None, None),
        (MISTRAL + LLAMA, None, None),
        (PLAIN, None, None),
        ("{{ message.content.split('</think>')[-1] }}", None, "qwen3"),
        (None, None, None),
    ],
    ids=["qwen", "hermes", "parts", "llama", "mistral", "qwen coder", "glm", "two", "plain", "deepseek", "none"],
)
def test_a_template_shows_the_format(template: str | None, calls: str | None, reasoning: str | None) -> None:
    found = call_format(template), reasoning_format(template)
    assert [one.name if one else None for one in found] == [calls, reasoning]


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


TOOLS = [tool("weather", parameters=CITY), tool("time")]
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    "tools, choice, mode",
    [
        (None, None, Mode.NONE),
        ([], None, Mode.NONE),
        (None, "auto", Mode.NONE),
        (TOOLS, None, Mode.AUTO),
        (TOOLS, "none", Mode.NONE),
        (TOOLS, "required", Mode.REQUIRED),
        (TOOLS, NAMED, Mode.NAMED),
    ],
)
def test_the_choice_of_tools(tools: Any, choice: Any, mode: Mode) -> None:
    assert ToolChoice.read(tools, choice, None).mode is mode


@pytest.mark.parametrize(
    "tools, choice, parallel, field",
    [
        ("weather", None, None, "tools"),
        ([3], None, None, "tools"),
        ([{"type": "web_search"}], None, None, "tools"),
        ([{"type": "function"}], None, None, "tools"),
        ([tool("")], None, None, "tools"),
        ([tool("a" * 300)], None, None, "tools"),
        ([tool("weather", parameters=[])], None, None, "tools"),
        ([tool("weather"), tool("weather")], None, None, "tools"),
        ([tool(f"t{number}") for number in range(1025)], None, None, "tools"),
        (TOOLS, "any", None, "tool_choice"),
        (TOOLS, 3, None, "tool_choice"),
        (TOOLS, {"type": "function"}, None, "tool_choice"),
        (TOOLS, {"type": "function", "function": {"name": "rain"}}, None, "tool_choice"),
        (None, "required", None, "tool_choice"),
        (TOOLS, None, "yes", "parallel_tool_calls"),
    ],
)
def test_wrong_tools_are_refused(tools: Any, choice: Any, parallel: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ToolChoice.read(tools, choice, parallel)
    assert refused.value.field == field


def test_a_demand_is_a_schema() -> None:
    assert ToolChoice.read(TOOLS, "auto", None).schema is None
    assert ToolChoice.read(TOOLS, NAMED, None).schema == CITY
    schema = ToolChoice.read(TOOLS, "required", None).schema
    weather, time = {"name": "weather", "parameters": {"city": "Bonn"}}, {"name": "time", "parameters": {}}
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid([weather, time])
    assert not any(map(validator.is_valid, ([], weather, [{"name": "weather", "parameters": {}}], [{"name": "rain"}])))
    alone = jsonschema.Draft202012Validator(ToolChoice.read(TOOLS, "required", False).schema)
    assert alone.is_valid([time]) and not alone.is_valid([weather, time])


def form(choice: Any, template: str | None = QWEN, is_structured: bool = False, parallel: Any = None) -> AnswerForm:
    tools = ToolChoice.read(TOOLS if choice else None, choice, parallel)
    return AnswerForm.of(AnswerFormats(), template, tools, is_structured=is_structured)


def test_auto_needs_a_known_format() -> None:
    with pytest.raises(InvalidRequest, match="--tool-call-parser"):
        form("auto", PLAIN)
    assert form("required", PLAIN).parser("").parse('[{"name": "time", "parameters": {}}]').calls
    given = AnswerFormats(tool_call_parser="mistral", reasoning_parser="none")
    chosen = AnswerForm.of(given, PLAIN, ToolChoice.read(TOOLS, "auto", None), is_structured=False)
    assert chosen.call_format is CALL_FORMATS["mistral"] and chosen.reasoning is None


def test_a_text_is_plain_without_tools_and_reasoning() -> None:
    assert form(None, PLAIN).is_plain() and form("none", MISTRAL).is_plain()
    assert not form(None, QWEN).is_plain() and not form("auto", MISTRAL).is_plain()
    assert form(None, QWEN, is_structured=True).is_plain()  # a grammar rules the text from its first token


def test_a_prompt_may_end_inside_the_reasoning() -> None:
    assert form(None).parser("<|im_start|>assistant\n<think>\n").parse("Hm.</think>Yes.").reasoning == "Hm."
    assert form(None).parser("What is <think> ?\nassistant\n").parse("Yes.").content == "Yes."
    always = AnswerFormats(reasoning_parser="deepseek_r1")
    parser = AnswerForm.of(always, PLAIN, ToolChoice(), is_structured=False).parser("assistant\n")
    assert parser.parse("Hm.</think>Yes.").reasoning == "Hm."


def test_markers_among_special_tokens_have_to_be_shown() -> None:
    assert form("auto", MISTRAL).hides_markers({"</s>", "[TOOL_CALLS]"})
    assert form(None, QWEN).hides_markers({"</think>"})
    assert not form("auto", MISTRAL).hides_markers({"</s>"})
    assert not form("none", MISTRAL).hides_markers({"[TOOL_CALLS]"})


def test_calls_that_are_one_too_many_are_left_out() -> None:
    pieces = [Content("a"), CallStart(0, "time"), Arguments(0, "{}"), CallStart(1, "time"), Arguments(1, "{}")]
    assert form("auto").allowed(pieces) == pieces
    assert form("auto", parallel=False).allowed(pieces) == pieces[:3]


def test_the_finish_reason_tells_of_calls() -> None:
    assert form("auto").finish_reason("stop", True) == "tool_calls"
    assert form("required").finish_reason("stop", True) == "tool_calls"
    assert form("auto").finish_reason("stop", False) == "stop"
    assert form("auto").finish_reason("length", True) == "length"
    assert form(NAMED).finish_reason("stop", True) == "stop"  # as OpenAI's
    assert form("auto").finish_reason(None, True) is None


def test_ids_of_calls_suit_the_template() -> None:
    assert re.fullmatch(r"call_\w{24}", form("auto").new_call_id())
    assert re.fullmatch(r"[a-zA-Z0-9]{9}", form("auto", MISTRAL).new_call_id())
