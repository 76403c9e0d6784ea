"""AnswerParser: what each format means, and that a stream gives what the whole text gives, however it is cut."""

import json
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blora.engine.answers.answer_parser import AnswerParser, content_only
from blora.engine.answers.forced import listed_calls, named_call
from blora.engine.answers.formats import CALL_FORMATS, THINK
from blora.engine.answers.pieces import Answer, Call, whole

NAMES = frozenset({"weather", "time"})
READERS = {name: form.reader(NAMES) for name, form in CALL_FORMATS.items()}
PARSERS: dict[str, Callable[[], AnswerParser]] = {
    **{name: lambda reader=reader: AnswerParser(reader) for name, reader in READERS.items()},
    "thinking hermes": lambda: AnswerParser(READERS["hermes"], THINK),
    "thinking mistral, inside": lambda: AnswerParser(READERS["mistral"], THINK, is_open=True),
    "thinking": lambda: AnswerParser(content_only, THINK),
    "listed": lambda: AnswerParser(listed_calls),
    "named": lambda: AnswerParser(named_call("weather")),
}


def parsed(format_name: str, text: str) -> Answer:
    return AnswerParser(READERS[format_name]).parse(text)


def answer(content: str | None, *calls: tuple[str, str], reasoning: str | None = None) -> Answer:
    return Answer(content, reasoning, [Call(name, arguments) for name, arguments in calls])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Hello.\n", answer("Hello.\n")),
        (
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>',
            answer(None, ("weather", '{"city": "Bonn"}')),
        ),
        (
            'I look.\n\n<tool_call>{"name": "weather", "arguments": {"a" :1 }}</tool_call>\n'
            '<tool_call>{"arguments": {"x": [{}]}, "name": "time"}</tool_call>\n',
            answer("I look.", ("weather", '{"a" :1 }'), ("time", '{"x": [{}]}')),
        ),
        (
            '<tool_call>{"name": "weather", "arguments": {"a": "</tool_call> \\" }"}}</tool_call>',
            answer(None, ("weather", '{"a": "</tool_call> \\" }"}')),
        ),
        (
            r'<tool_call>{"name": "time", "arguments": {"a": "\"b", "\\": "\\\""}}</tool_call>',
            answer(None, ("time", r'{"a": "\"b", "\\": "\\\""}')),
        ),
        # JSON in JSON, no arguments, null, and what models write besides
        ('<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>', answer(None, ("time", '{"a": 1}'))),
        ('<tool_call>{"name": "time"}</tool_call>', answer(None, ("time", "{}"))),
        ('<tool_call>{"name": "time", "arguments": null}</tool_call>', answer(None, ("time", "{}"))),
        (
            '<tool_call>{"id": [1, {"a": 2}], "name": "time", "arguments": {}, "b": "}"}</tool_call> ok',
            answer(" ok", ("time", "{}")),
        ),
        # a brace too few, a brace too many, no end
        (
            '<tool_call>{"name": "time", "arguments": {"a": 1}</tool_call>ok',
            answer("ok", ("time", '{"a": 1}')),
        ),
        ('<tool_call>{"name": "time", "arguments": {"a": 1}}}</tool_call>', answer(None, ("time", '{"a": 1}'))),
        ('<tool_call>{"name": "time", "arguments": {"a": [</tool_call>ok', answer("ok", ("time", '{"a": ['))),
        ('<tool_call>{"name": "time", "arguments": {"a": "x', answer(None, ("time", '{"a": "x'))),
        # arguments that are no JSON are the model's text all the same
        (
            '<tool_call>{"name": "time", "arguments": {\'a\': True,}}</tool_call>',
            answer(None, ("time", "{'a': True,}")),
        ),
    ],
)
def test_hermes(text: str, expected: Answer) -> None:
    assert parsed("hermes", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>weather</tool_call>",
        "<tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\x", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "time", "arguments": 5}</tool_call>',
        '<tool_call>{"name": "time" "arguments": {}}</tool_call>',
        '<tool_call>["time"]</tool_call>',
        '<tool_call>{"name": "tim',
        "a < b, <tool_cal and <tool_",
        "</tool_call>",
    ],
)
@pytest.mark.parametrize("format_name", ["hermes", "llama3_json", "mistral"])
def test_what_is_no_call_stays_content(text: str, format_name: str) -> None:
    marker = CALL_FORMATS[format_name].marker
    text = text.replace("<tool_call>", marker)
    assert parsed(format_name, text) == answer(text)


def test_a_call_after_a_failed_one_is_found() -> None:
    text = '<tool_call>{"name": <tool_call>{"name": "time", "arguments": {}}</tool_call>'
    assert parsed("hermes", text) == answer('<tool_call>{"name":', ("time", "{}"))


@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"name": "weather", "parameters": {"city": "Bonn"}}', answer(None, ("weather", '{"city": "Bonn"}'))),
        (
            '<|python_tag|>{"name": "weather", "parameters": {"a": 1}}; {"name": "time", "arguments": {}}\n',
            answer(None, ("weather", '{"a": 1}'), ("time", "{}")),
        ),
        (
            '\n {"type": "function", "name": "weather", "parameters": {}};\n{"name": "time", "parameters": {}}',
            answer(None, ("weather", "{}"), ("time", "{}")),
        ),
        ('I look.\n{"name": "time", "parameters": {}} Done.', answer("I look. Done.", ("time", "{}"))),
        ('<|python_tag|>{"name": "unknown", "parameters": {}}', answer(None, ("unknown", "{}"))),
    ],
)
def test_llama(text: str, expected: Answer) -> None:
    assert parsed("llama3_json", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bonn", "parameters": {}}',  # no tool
        '{"name": "time"}',
        '{"name": "time", "size": 3, "parameters": {}}',
        '{"city": "Bonn"}',
        'the object {"name": "time", "parameters": {}}',
        "<|python_tag|>print(3)",
        "{\n  x = 1;\n}",
    ],
)
def test_an_object_may_be_llamas_answer(text: str) -> None:
    assert parsed("llama3_json", text) == answer(text)


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            '[TOOL_CALLS] [{"name": "weather", "arguments": {"a": 1}}, {"name": "time", "arguments": {}}]',
            answer(None, ("weather", '{"a": 1}'), ("time", "{}")),
        ),
        (
            'I look.[TOOL_CALLS]weather[ARGS]{"a": 1}[TOOL_CALLS]time[CALL_ID]abc456789[ARGS]{}',
            answer("I look.", ("weather", '{"a": 1}'), ("time", "{}")),
        ),
        ('[TOOL_CALLS]get-time.v1{"a": 1} ok', answer(" ok", ("get-time.v1", '{"a": 1}'))),
        ('[TOOL_CALLS][{"name": "time", "arguments": {}}, nothing] ok', answer(", nothing] ok", ("time", "{}"))),
        ('[TOOL_CALLS][{"name": "time", "arguments": {"a": [1, ', answer(None, ("time", '{"a": [1, '))),
    ],
)
def test_mistral(text: str, expected: Answer) -> None:
    assert parsed("mistral", text) == expected


@pytest.mark.parametrize("text", ["[TOOL_CALLS]", "[TOOL_CALLS][]", "[TOOL_CALLS] [3]", "[TOOL_CALLS]time[ARGS]3"])
def test_what_is_no_call_of_mistral_stays_content(text: str) -> None:
    assert parsed("mistral", text) == answer(text)


@pytest.mark.parametrize(
    "text, is_open, expected",
    [
        ("<think>\nHm.\n\n</think>\n\nYes.", False, answer("Yes.", reasoning="Hm.")),
        ("\nHm.\n</think>Yes. </think>", True, answer("Yes. </think>", reasoning="Hm.")),
        ("<think>Hm, 1 < 2", True, answer(None, reasoning="Hm, 1 < 2")),
        ("<think>\n\n</think>\n\nYes.\n", False, answer("Yes.\n")),
        ("Yes, <think>Hm.</think>", False, answer("Yes, <think>Hm.</think>")),
        ("<thin", False, answer("<thin")),
        ("", True, answer(None)),
    ],
)
def test_reasoning(text: str, is_open: bool, expected: Answer) -> None:
    assert AnswerParser(content_only, THINK, is_open=is_open).parse(text) == expected


def test_calls_come_after_the_reasoning() -> None:
    text = '<think><tool_call></think>\n<tool_call>{"name": "time", "arguments": {}}</tool_call>'
    parser = AnswerParser(READERS["hermes"], THINK)
    assert parser.parse(text) == answer(None, ("time", "{}"), reasoning="<tool_call>")


def test_forced_calls() -> None:
    text = '[{"name": "time", "parameters": {"a": 1}},\n{"name": "weather", "parameters": {}}]'
    assert AnswerParser(listed_calls).parse(text) == answer(None, ("time", '{"a": 1}'), ("weather", "{}"))
    assert AnswerParser(named_call("time")).parse('{"a": 1}') == answer(None, ("time", '{"a": 1}'))
    assert AnswerParser(listed_calls).parse("sorry") == answer("sorry")


def test_arguments_come_while_they_are_written() -> None:
    parser = AnswerParser(READERS["hermes"])
    parts = ["a", " <tool", '_call>{"name": "time", "argu', 'ments": {"a"', ": ", '"x"}', "}</tool_", "call>"]
    assert [len(parser.push(part)) for part in parts] == [1, 0, 0, 2, 1, 1, 0, 0]
    assert parser.finish() == []


FRAGMENTS = (
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<think>", "</think>"),
    *(
        '{"name": "time", "arguments": {"a": 1}}',
        '{"name": "weather", "parameters": {"b": "}\\"<"}}',
        "[",
        "]",
        "{",
        "}",
    ),
    *(
        '"name"',
        '"arguments"',
        '"time"',
        ":",
        ",",
        ";",
        '"',
        "\\",
        "\n",
        "  ",
        "a",
        "null",
        "7",
        "<",
        "é😀",
        "\x85",
        "/",
    ),
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join)


@pytest.mark.parametrize("name", sorted(PARSERS))
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, data=st.data())
def test_a_stream_gives_what_the_whole_text_gives(name: str, text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    edges = [0, *cuts, len(text)]
    parser = PARSERS[name]()
    pieces = [piece for at, end in zip(edges, edges[1:], strict=False) for piece in parser.push(text[at:end])]
    pieces += parser.finish()
    by_character = PARSERS[name]()
    singles = [piece for character in text for piece in by_character.push(character)] + by_character.finish()
    assert whole(pieces) == whole(singles) == PARSERS[name]().parse(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('"\\{}[]<,: \n</tool_call>é'), max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=8,
)
WRITTEN = {
    "hermes": '<tool_call>\n{"name": "time", "arguments": %s}\n</tool_call>',
    "llama3_json": '{"name": "time", "parameters": %s}',
    "mistral": "[TOOL_CALLS]time[ARGS]%s",
}


@settings(max_examples=60, deadline=None)
@given(arguments=st.dictionaries(st.text(max_size=3), JSON, max_size=3), indent=st.sampled_from([None, 1]))
def test_arguments_are_the_text_that_the_model_wrote(arguments: dict[str, Any], indent: int | None) -> None:
    written = json.dumps(arguments, indent=indent, ensure_ascii=False)
    for name, text in WRITTEN.items():
        assert parsed(name, text % written) == answer(None, ("time", written))


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "mistral"])
@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=50))
def test_text_without_calls_is_the_content(name: str, text: str) -> None:
    assert parsed(name, text) == answer(text or None)


HOSTILE = {
    "failing calls": '<tool_call>{"x": [',
    "calls in strings": '<tool_call>{"x": "',
    "brackets": '<tool_call>{"name": "time", "arguments": {"a": [[[[',
    "spaces": "<tool_call>" + " " * 20,
    "spaces of the content": " " * 20,
    "halves of markers": "<tool_cal",
    "escapes": '<tool_call>{"name": "time", "arguments": {"a": "' + "\\" * 21,
}


def num_calls(run: Callable[[], Any]) -> int:
    count = 0

    def on_event(_frame: FrameType, _event: str, _argument: Any) -> None:
        nonlocal count
        count += 1

    sys.setprofile(on_event)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_work_grows_with_the_text_and_no_faster(text: str) -> None:
    """Counted in calls of functions, while single characters come."""

    def run(times: int) -> None:
        parser = AnswerParser(READERS["hermes"], THINK)
        for character in text * times:
            parser.push(character)
        parser.finish()

    assert num_calls(lambda: run(40)) < 2.5 * num_calls(lambda: run(20))
