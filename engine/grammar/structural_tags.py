"""Structural tags: free text in which certain tags open parts of a given form, as a grammar in Lark's notation.

Both notations of vLLM are read: {"structures": [{"begin", "schema", "end"}], "triggers": [...]}, and {"type":
"structural_tag", "format": {...}}, of which the formats in FORMATS are served.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .source import refused

NAME = "structural_tag"
ANY_TEXT = r"/(.|\n)*/"


def lark_of_tags(tags: Any, json_options: Mapping[str, Any]) -> str:
    """Raises InvalidRequest."""
    if not isinstance(tags, dict):
        raise refused(NAME, "is not an object")
    rules = _Rules(json_options)
    root = rules.part(tags["format"]) if isinstance(tags.get("format"), dict) else rules.part(_as_triggered(tags))
    return rules.text(root)


def _as_triggered(tags: Mapping[str, Any]) -> dict[str, Any]:
    structures = _list(tags, "structures")
    return {
        "type": "triggered_tags",
        "triggers": _list(tags, "triggers"),
        "tags": [
            {
                "begin": _text(structure, "begin"),
                "content": {"type": "json_schema", "json_schema": _entry(structure, "schema")},
                "end": _text(structure, "end"),
            }
            for structure in structures
        ],
    }


class _Rules:
    """The rules of one grammar; each format becomes a rule."""

    def __init__(self, json_options: Mapping[str, Any]) -> None:
        self._json_options = json_options
        self._rules: list[str] = []

    def text(self, root: str) -> str:
        return "\n".join(["%llguidance {}", f"start: {root}", *self._rules, f"ANY_TEXT: {ANY_TEXT}", ""])

    def _rule(self, body: str, flags: str = "") -> str:
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}{flags}: {body}")
        return name

    def part(self, form: Any) -> str:
        """Returns the name of the rule of a format."""
        kind = form.get("type") if isinstance(form, dict) else None
        if kind not in FORMATS:
            raise refused(NAME, f"the format {kind!r:.80} is none of {', '.join(FORMATS)}")
        return str(FORMATS[kind](self, form))

    def _const(self, form: Mapping[str, Any]) -> str:
        return self._rule(_quoted(_text(form, "value")))

    def _schema(self, form: Mapping[str, Any]) -> str:
        schema = _entry(form, "json_schema")
        if not isinstance(schema, dict | bool):
            raise refused(NAME, "a schema is not an object")
        own = {**schema, "x-guidance": dict(self._json_options)} if isinstance(schema, dict) else schema
        return self._rule(f"%json {json.dumps(own)}")

    def _regex(self, form: Mapping[str, Any]) -> str:
        return self._rule("/" + _text(form, "pattern").replace("/", r"\/") + "/")

    def _any_text(self, _: Mapping[str, Any]) -> str:
        return self._rule("ANY_TEXT")

    def _sequence(self, form: Mapping[str, Any]) -> str:
        return self._rule(" ".join(self.part(element) for element in _list(form, "elements")))

    def _or(self, form: Mapping[str, Any]) -> str:
        return self._rule(" | ".join(self.part(element) for element in _list(form, "elements")))

    def _tag(self, form: Mapping[str, Any]) -> str:
        return self._rule(self._inside(form, _text(form, "begin")))

    def _inside(self, form: Mapping[str, Any], begin: str) -> str:
        parts = (_quoted(begin), self.part(_entry(form, "content")), _quoted(_text(form, "end")))
        return " ".join(part for part in parts if part != '""') or '""'

    def _separated(self, form: Mapping[str, Any]) -> str:
        one = self._rule(" | ".join(self._tag(tag) for tag in _list(form, "tags")))
        more = self._rule(f"{_quoted(_text(form, 'separator'))} {one}")
        return self._rule(f"{one} ({more})*" if form.get("at_least_one") else f"({one} ({more})*)?")

    def _triggered(self, form: Mapping[str, Any]) -> str:
        """Text goes on until a trigger stands in it, which is the beginning of one of the tags."""
        triggers, tags = [_said(trigger) for trigger in _list(form, "triggers")], _list(form, "tags")
        heads = {trigger: self._rule(f"ANY_TEXT {_quoted(trigger)}", "[lazy]") for trigger in triggers}
        bodies = []
        for tag in tags:
            begin = _text(tag, "begin")
            trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
            if trigger is None:
                raise refused(NAME, f"{begin!r:.80} begins with none of the triggers")
            bodies.append(self._rule(f"{heads[trigger]} {self._inside(tag, begin[len(trigger) :])}"))
        one = self._rule(" | ".join(bodies))
        return self._rule(f"({one})+ ANY_TEXT" if form.get("at_least_one") else f"({one})* ANY_TEXT")


FORMATS = {
    "const_string": _Rules._const,
    "json_schema": _Rules._schema,
    "regex": _Rules._regex,
    "any_text": _Rules._any_text,
    "sequence": _Rules._sequence,
    "or": _Rules._or,
    "tag": _Rules._tag,
    "tags_with_separator": _Rules._separated,
    "triggered_tags": _Rules._triggered,
}


def _entry(form: Any, name: str) -> Any:
    if not isinstance(form, dict) or name not in form:
        raise refused(NAME, f"a part has no {name!r}")
    return form[name]


def _text(form: Any, name: str) -> str:
    value = _entry(form, name)
    if not isinstance(value, str):
        raise refused(NAME, f"{name!r} is not a text")
    return value


def _said(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise refused(NAME, "a trigger is not a text of at least one character")
    return value


def _list(form: Any, name: str) -> Sequence[Any]:
    value = _entry(form, name)
    if not isinstance(value, list) or not value:
        raise refused(NAME, f"{name!r} is not a list of at least one entry")
    return value


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
