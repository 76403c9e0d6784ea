"""Chats are rendered as transformers does, and where vLLM differs from it for a conversation's sake, as vLLM does."""

import json
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from blora.engine.errors import InvalidRequest
from blora.engine.text import chat_rendering
from blora.engine.text.chat import Chat
from blora.engine.text.chat_rendering import render_chat
from blora.engine.text.chat_template import content_use

# Templates in the idioms of published ones: what they print of tools, of tool calls and of the final turn.
TEXTS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
TRIMMED = TEXTS.replace("m.content", "m.content | trim")
TOOLS = (
    "{%- if tools %}<tools>{%- for tool in tools %}\n{{ tool | tojson }}{% endfor %}</tools>\n{% endif %}"
    "{%- for m in messages %}<{{ m.role }}{{ ' ' + m.name if m.name }}>{{ m.content if m.content is string }}"
    "{%- for call in m.tool_calls or [] %}{% if call.function %}{% set call = call.function %}{% endif %}"
    '\n<call>{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}</call>'
    "{%- for key, value in call.arguments.items() %} {{ key }}={{ value | string }}{% endfor %}{% endfor %}"
    "{%- if m.role == 'tool' %} for {{ m.tool_call_id }}{% endif %}"
    "{%- if m.reasoning_content is defined and m.reasoning_content %} ({{ m.reasoning_content }}){% endif %}"
    "</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
INDENTED = TOOLS.replace("tool | tojson", "tool | tojson(indent=4)")
PARTS = (
    "{% set rest = messages[0:] %}{% for m in rest %}<{{ m.role }}>{% for part in m['content'] %}[{{ part.type }}]"
    "{{ part['text'] | trim }}{% endfor %}</>{% endfor %}"
)
EITHER = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}</>{% endfor %}"
)
TEMPLATES = {"texts": TEXTS, "trimmed": TRIMMED, "tools": TOOLS, "indented": INDENTED, "either": EITHER}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Tells the weather, with <units> & "marks" of \'s.',
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "東京"]}}},
    },
}
CALL: dict[str, Any] = {"name": "get_weather", "arguments": {"city": "Köln", "days": 3, "scale": 1.0, "at": None}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": CALL}]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Hello."}],
    "turns": [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": " What is 1 + 1?\n"},
        {"role": "assistant", "content": "2 "},
    ],
    "tool call": [{"role": "user", "content": "Weather?"}, CALLED],
    "tool answer": [
        {"role": "user", "content": "Weather?"},
        CALLED,
        {"role": "tool", "name": "get_weather", "tool_call_id": "c1", "content": '{"temperature": 17.50}'},
    ],
    "reasoning": [{"role": "assistant", "content": "Yes.", "reasoning_content": "It is so."}],
}


def render(template: str, messages: Any, **arguments: Any) -> str:
    return render_chat(Chat.read({"messages": messages, **arguments}), template, {"eos_token": "</s>"})


def theirs(template: str, messages: Any, add_generation_prompt: bool = True, **arguments: Any) -> str:
    kwargs = arguments.pop("chat_template_kwargs", {})
    (text,), _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=add_generation_prompt, **arguments, **kwargs
    )
    return str(text)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"add_generation_prompt": False},
        {"tools": [WEATHER]},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"continue_final_message": True, "add_generation_prompt": False},
    ],
    ids=str,
)
def test_a_conversation_is_rendered_as_transformers_does(name: str, messages: Any, arguments: dict[str, Any]) -> None:
    assert render(TEMPLATES[name], messages, **arguments) == theirs(TEMPLATES[name], messages, **arguments)


def test_thinking_is_turned_off_by_an_argument_of_the_template() -> None:
    messages = CONVERSATIONS["one turn"]
    assert render(TEXTS, messages).endswith("<assistant>")
    assert render(TEXTS, messages, chat_template_kwargs={"enable_thinking": False}).endswith("<think></think>")


def test_arguments_in_json_are_those_in_a_mapping() -> None:
    call = CALL | {"arguments": json.dumps(CALL["arguments"])}
    messages = [CALLED | {"content": None, "tool_calls": [{"function": call}]}]
    assert render(TOOLS, messages) == theirs(TOOLS, [CALLED])


@pytest.mark.parametrize(
    ("template", "content", "text"),
    [
        (TEXTS, [{"type": "text", "text": "a"}, "b"], "<user>a\nb</>\n"),
        (TEXTS, None, "<user></>\n"),
        (TEXTS, [], "<user></>\n"),
        (PARTS, "a", "<user>[text]a</>"),
        (PARTS, ["a", "b"], "<user>[text]a[text]b</>"),
        (PARTS, "", "<user></>"),
        (PARTS, None, "<user></>"),
        (EITHER, ["a", "b"], "<user>ab</>"),
        (EITHER, "a", "<user>a</>"),
        (EITHER, ["a", {"text": "b"}], "<user>ab</>"),
        (EITHER.replace("{{ m.content }}", "{{ m.content | upper }}"), "a", "<user>A</>"),
    ],
)
def test_content_comes_as_the_template_expects_it(template: str, content: Any, text: str) -> None:
    assert render(template, [{"role": "user", "content": content}], add_generation_prompt=False) == text


def test_the_format_of_contents_may_be_given() -> None:
    messages = [{"role": "user", "content": ["a", "b"]}, {"role": "tool", "content": ["c", "d"]}]
    show = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert render(show, messages) == render(show, messages, chat_template_content_format="string") == "a\nbc\nd"
    parts = "[{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]"
    assert render(show, messages, chat_template_content_format="openai") == parts + "c\nd"


@pytest.mark.parametrize(
    ("loop", "found"),
    [
        ("m.content", True),
        ("m['content']", True),
        ("m.content[1:]", True),
        ("m.content | selectattr('type')", True),
        ("m.contents", False),
        ("m", False),
        ("range(m.content | length)", False),
    ],
)
def test_templates_that_go_through_parts_are_found(loop: str, found: bool) -> None:
    template = "{% macro f(m) %}{% for part in " + loop + " %}{% endfor %}{% endmacro %}"
    assert content_use(template).loops is found
    assert not content_use("{{ messages[0].content }}").loops


def test_none_comes_to_a_template_that_asks_for_it_beside_tool_calls() -> None:
    """Templates of DeepSeek's R1 print tool calls only where the content is none."""
    template = "{% for m in messages %}{% if m['content'] is none %}{{ m.tool_calls[0].name }}{% else %}"
    template += "<{{ m['content'] }}>{% endif %}{% endfor %}"
    call = {"name": "add", "arguments": {}}
    for content in (None, "", []):
        messages = [
            {"role": "assistant", "content": content, "tool_calls": [call]},
            {"role": "user", "content": content},
        ]
        assert render(template, messages) == "add<>"
    assert render(template, [{"role": "assistant", "content": "a", "tool_calls": [call]}]) == "<a>"


def test_a_chat_brings_its_own_template() -> None:
    messages = CONVERSATIONS["one turn"]
    assert render(TEXTS, messages, chat_template="{{ eos_token }}{{ messages[0].content }}") == "</s>Hello."
    assert render_chat(Chat.read({"messages": messages, "chat_template": "{{ x }}!"}), None, {}) == "!"
    with pytest.raises(InvalidRequest, match="^messages: the model has no chat template"):
        render_chat(Chat.read({"messages": messages}), None, {})


def test_a_template_of_many_chats_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(chat_rendering, "check_template", checked.append)
    template = "{{ messages[0].content }} (checked once)"
    for content in "abc":
        render(TEXTS, [{"role": "user", "content": content}], chat_template=template)
    assert checked == [template]


@pytest.mark.parametrize("template", ["{% if %}", "{% for a in range(99999) %}{{ range(99999) | list }}{% endfor %}"])
def test_a_template_that_a_chat_brings_is_checked_before_it_runs(template: str) -> None:
    with pytest.raises(InvalidRequest, match="^chat_template: "):
        render(TEXTS, CONVERSATIONS["one turn"], chat_template=template)


@pytest.mark.parametrize("template", ["{{ messages[-1].content[:3] }}", "{{ messages[0].role }}", "{{ eos_token }}"])
def test_a_final_message_that_the_template_changes_cannot_be_continued(template: str) -> None:
    with pytest.raises(InvalidRequest, match="^continue_final_message: "):
        render(template, CONVERSATIONS["turns"], continue_final_message=True, add_generation_prompt=False)


@pytest.mark.parametrize("content", ["a b", "a b ", ["x", "a b"], ""])
def test_a_continued_message_ends_where_its_text_does(content: Any) -> None:
    messages = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": content}]
    arguments = {"continue_final_message": True, "add_generation_prompt": False}
    whole = render(EITHER, messages, add_generation_prompt=False)
    assert render(EITHER, messages, **arguments) == whole.removesuffix("</>")
    assert render(TRIMMED, messages, **arguments) == render(TRIMMED, messages, add_generation_prompt=False)[:-4]
    assert render(PARTS, [{"role": "assistant", "content": []}], **arguments) == "<assistant>[text]"
