"""Random ways through grammars: whatever is drawn, the text matches what was asked for."""

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
import pytest
from json_schemas import LEAF_KINDS, whole_schema

from blora.adapters import AddedToken
from blora.engine import InvalidRequest, StructuredOutputsParams
from blora.engine.grammar.compiled import TOO_COMPLEX, Grammar, Matcher
from blora.engine.grammar.library_text import library_text
from blora.engine.grammar.masks import allowed_tokens, masks_of, take_ends
from blora.engine.grammar.source import source_of
from blora.engine.grammar.vocabulary import Vocabulary, spelled_tokens

FORMATS = ("date", "email", "ipv4", "ipv6", "uuid")  # that the validator checks as JSON Schema means them
LONG = 120  # tokens, after which a way makes for its end
MOST = 2000  # tokens of a way
ENDS_OF_JSON = b'"}]'


def grammar(vocabulary: Vocabulary, **fields: Any) -> Grammar:
    return Grammar(library_text(source_of(StructuredOutputsParams(**fields))), vocabulary)


def random_text(way: Matcher, draw: random.Random, vocabulary: Vocabulary, ends: bytes = ENDS_OF_JSON) -> str:
    """Goes a random way to its end, as rows do: by masks; another one where it is too long. ends: the bytes that a long
    way prefers, the first of them most."""
    start = way.library_matcher.deep_copy()
    token_ids: list[int] = []
    while len(token_ids) < MOST:
        (may_end,) = take_ends(masks_of([way]), way.vocabulary.end)
        allowed: Sequence[int] = allowed_tokens(way)
        assert way.error is None
        assert allowed or may_end, vocabulary.tokens.decode_str(token_ids)
        if may_end and (not allowed or draw.random() < 0.2 or len(token_ids) > LONG):
            return vocabulary.tokens.decode_bytes(token_ids).decode()
        if len(token_ids) > LONG:
            allowed = [
                token_id for token_id in allowed if vocabulary.tokens.decode_bytes([token_id]) in ends
            ] or allowed
        token_ids.append(draw.choice(allowed))
        if way.take(token_ids[-1]):
            return vocabulary.tokens.decode_bytes(token_ids).decode()
    return random_text(Matcher(start, vocabulary), draw, vocabulary, ends)


def check(text: str, schema: dict[str, Any]) -> None:
    jsonschema.validate(
        json.loads(text), schema, jsonschema.Draft202012Validator, format_checker=jsonschema.FormatChecker(FORMATS)
    )


@pytest.mark.parametrize("kind", LEAF_KINDS)
def test_texts_of_each_kind_of_schema_are_valid(kind: str, vocabulary: Vocabulary) -> None:
    draw = random.Random(kind)
    for _ in range(4):
        schema = LEAF_KINDS[kind](draw)
        compiled = grammar(vocabulary, json=schema)
        for _ in range(3):
            check(random_text(compiled.begin(), draw, vocabulary), schema)


SPACES: tuple[dict[str, Any], ...] = ({}, {"disable_any_whitespace": True}, {"whitespace_pattern": " ?"})


def test_texts_of_random_schemas_are_valid(vocabulary: Vocabulary, cases: Callable[[int, int], int]) -> None:
    for seed in range(cases(120, 2000)):
        draw = random.Random(seed)
        schema = whole_schema(draw)
        print(seed, json.dumps(schema))
        compiled = grammar(vocabulary, json=schema, **SPACES[seed % len(SPACES)])
        for _ in range(3):
            check(random_text(compiled.begin(), draw, vocabulary), schema)


REGEXES = (
    "[a-z]{2,5}",
    r"\d{3}-\d{4}",
    "(ab|cd)+e?",
    "[^x]{1,3}x",
    r"(\+49|0)[1-9]\d{2,8}",
    "a|b|",
    "ä+ö{2}",
    r"^\w+@\w+\.(com|org)$",
    r"\$",
    r"a\\$",
    "(yes|no)( please)?",
    r"[\x20-\x7e]{0,9}",
    "😀{1,2}",
)


@pytest.mark.parametrize("regex", REGEXES, ids=ascii)
def test_texts_match_their_regular_expression(regex: str, vocabulary: Vocabulary) -> None:
    compiled, draw = grammar(vocabulary, regex=regex), random.Random(regex)
    for _ in range(10):
        text = random_text(compiled.begin(), draw, vocabulary)
        assert re.fullmatch(regex, text), text


def random_regex(draw: random.Random, depth: int = 3) -> str:
    """Regular expressions that mean the same in Python and in the library."""
    if not depth or draw.random() < 0.3:
        return draw.choice(["a", "b", "[a-c]", "[^ab!]", "[0-9]", "é", r"\.", "xyz", "[^!]"])
    parts = [random_regex(draw, depth - 1) for _ in range(draw.randint(1, 3))]
    repeated = draw.choice(["", "?", "{2}", "{1,3}", "{0,2}"])
    return f"({draw.choice(['', '|']).join(parts)}){repeated}"


def test_texts_match_random_regular_expressions(vocabulary: Vocabulary, cases: Callable[[int, int], int]) -> None:
    for seed in range(cases(100, 2000)):
        draw = random.Random(seed)
        regex = random_regex(draw) + "!"
        compiled = grammar(vocabulary, regex=regex)
        for _ in range(3):
            text = random_text(compiled.begin(), draw, vocabulary, b"!")
            assert re.fullmatch(regex, text), (seed, regex, text)


def test_a_choice_is_one_of_the_texts(vocabulary: Vocabulary) -> None:
    texts = ["yes", "no", "yes, but", 'with "quotes" and \\', "zeile\nende", "€"]
    compiled, draw = grammar(vocabulary, choice=texts), random.Random(1)
    assert {random_text(compiled.begin(), draw, vocabulary) for _ in range(60)} == set(texts)


GRAMMARS = {
    "lark": ('start: "<" inner ">"\ninner: /[ab]/ inner | "."', r"<[ab]*\.>"),
    "terminals": ("start: NAME NUMBER?\nNAME: /[A-Z][a-z]+/\nNUMBER: /[0-9]+/", "[A-Z][a-z]+[0-9]*"),
    "gbnf": ('root ::= "(" item+ ")"\nitem ::= [0-9] | "x" item?', "\\(([0-9]|x+[0-9]?)+\\)"),
}


@pytest.mark.parametrize(("text", "regex"), GRAMMARS.values(), ids=GRAMMARS)
def test_grammars_of_both_notations(text: str, regex: str, vocabulary: Vocabulary) -> None:
    compiled, draw = grammar(vocabulary, grammar=text), random.Random(2)
    for _ in range(10):
        assert re.fullmatch(regex, random_text(compiled.begin(), draw, vocabulary))


TAG = {"begin": "<f=a>", "schema": {"type": "integer", "minimum": 0, "maximum": 9}, "end": "</f>"}
NESTED = {
    "type": "sequence",
    "elements": [
        {"type": "const_string", "value": "I: "},
        {"type": "or", "elements": [{"type": "regex", "pattern": "x/y"}, {"type": "const_string", "value": "z"}]},
        {
            "type": "tags_with_separator",
            "tags": [{"begin": "[", "content": {"type": "json_schema", "json_schema": {"enum": [1, 2]}}, "end": "]"}],
            "separator": ",",
            "at_least_one": True,
        },
    ],
}


def test_structural_tags(vocabulary: Vocabulary) -> None:
    draw = random.Random(3)
    nested = grammar(vocabulary, structural_tag={"type": "structural_tag", "format": NESTED})
    for _ in range(5):
        text = random_text(nested.begin(), draw, vocabulary)
        assert re.fullmatch(r"I: (x/y|z)\[[12]\](,\[[12]\])*", text), text
    triggered = grammar(vocabulary, structural_tag={"structures": [TAG], "triggers": ["<f="]})
    way = triggered.begin()
    for byte in b"free <g> text <f=":
        assert byte_token(vocabulary, byte) in allowed_tokens(way)
        way.take(byte_token(vocabulary, byte))
    assert allowed_tokens(way) == [byte_token(vocabulary, ord("a"))]
    for byte in b"a>7</f> and <f=a>1</f> more":
        assert byte_token(vocabulary, byte) in allowed_tokens(way)
        way.take(byte_token(vocabulary, byte))


def byte_token(vocabulary: Vocabulary, byte: int) -> int:
    (token_id,) = vocabulary.spell(chr(byte))
    return token_id


UNSERVED = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}, "then": {"minLength": 2}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "oneOf": {"oneOf": [{"type": "string"}, {"maxLength": 3}]},
    "format": {"type": "string", "format": "regex"},
    "$ref": {"$ref": "https://example.com/schema"},
}


@pytest.mark.parametrize(("word", "schema"), UNSERVED.items(), ids=UNSERVED)
def test_a_keyword_that_is_not_served_is_refused_by_name(
    word: str, schema: dict[str, Any], vocabulary: Vocabulary
) -> None:
    """It would be no answer to leave the keyword out."""
    with pytest.raises(InvalidRequest, match=re.escape(word) if word != "$ref" else "example.com"):
        grammar(vocabulary, json=schema)


BAD = {
    "unclosed": {"regex": "(a"},
    "lookahead": {"regex": "(?=a)b"},
    "back reference": {"regex": r"(a)\1"},
    "no rule": {"grammar": "hello"},
    "unknown rule": {"grammar": "start: x"},
    "nothing can match": {"json": {"type": "integer", "minimum": 5, "maximum": 3}},
    "false": {"json": "false"},
    "endless": {"grammar": "start: start"},
    "only the empty text": {"grammar": "start: "},
    "unknown special token": {"grammar": "start: <|nobody|>"},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD)
def test_what_is_no_grammar_is_refused_with_the_reason(fields: dict[str, Any], vocabulary: Vocabulary) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grammar(vocabulary, **fields)
    assert len(caught.value.reason) > 20
    assert "\n" not in str(caught.value)


def test_a_way_that_becomes_too_complex_ends_alone(vocabulary: Vocabulary) -> None:
    names = {f"p{index}": {"type": "string", "pattern": f"^[a-z]{{1,100}}{index}$"} for index in range(900)}
    hostile = grammar(vocabulary, json={"type": "object", "properties": names})
    harmless = grammar(vocabulary, regex="[a-z]*")
    way, other = hostile.begin(), harmless.begin()
    for byte in b'{"p':
        masks_of([way, other])
        assert not way.take(byte_token(vocabulary, byte))
        assert not other.take(byte_token(vocabulary, ord("a")))
    assert way.error == TOO_COMPLEX
    assert other.error is None


def test_masks_of_many_rows_are_those_of_each_alone(vocabulary: Vocabulary) -> None:
    """Few rows are computed one after another, and many beside each other."""
    compiled = [grammar(vocabulary, regex=regex) for regex in REGEXES]
    together = masks_of([one.begin() for one in compiled])
    alone = [masks_of([one.begin()])[0] for one in compiled]
    assert len(compiled) > 8
    for mask, own in zip(together, alone, strict=True):
        assert (mask == own).all()


def test_a_special_token_of_an_adapter_stands_where_the_grammar_spells_it(vocabulary: Vocabulary) -> None:
    added = [AddedToken(300, "<call>", special=True), AddedToken(301, "<end>", special=True), AddedToken(302, "a")]
    spelled = spelled_tokens(added, "<call>[abc]{1,9}")
    assert spelled == ((300, "<call>"), (302, "a"))
    way = grammar(vocabulary, regex="<call>[abc]{1,9}").begin(spelled)
    assert way.spelled_tokens() == [300]
    assert not way.take(300)
    assert way.spelled_tokens() == [302]
    assert spelled_tokens(added, "[a-z]+") == ((302, "a"),)


def test_tokens_of_an_adapter_are_spelled_by_those_of_the_model(vocabulary: Vocabulary) -> None:
    added = [AddedToken(300, "yes", special=False), AddedToken(301, "<end>", special=True), AddedToken(302, "ye")]
    spelled = spelled_tokens(added, "yes?!")
    assert spelled == ((300, "yes"), (302, "ye"))
    way = grammar(vocabulary, regex="yes?!").begin(spelled)
    assert way.spelled_tokens() == [300, 302]
    assert not way.take(302)
    assert way.spelled_tokens() == []
    assert way.take(byte_token(vocabulary, ord("!")))


def test_tokens_beyond_the_tokenizer_are_never_allowed(vocabulary: Vocabulary) -> None:
    free = allowed_tokens(grammar(vocabulary, regex=r"(.|\n)*").begin())
    assert len(free) > 100
    assert max(free) < 256  # neither the special token nor what only the logits have
