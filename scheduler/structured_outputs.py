"""StructuredOutputsParams: what the text of an answer has to match. Pure data with vLLM's names; checked elsewhere."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class StructuredOutputsParams:
    """What the text of an answer has to match. Exactly one of the first six fields is set.

    json: a JSON schema, as an object or as its text. regex: a regular expression that the whole text matches. choice:
    texts, one of which is the answer. grammar: a Lark grammar, or one in the EBNF of GBNF. json_object: True is any
    JSON object. structural_tag: JSON, which says in which tags the text has what form; text between them is free.
    disable_any_whitespace: JSON without spaces and line ends. whitespace_pattern: a regular expression for the space
    between the parts of JSON. disable_additional_properties: an object of a schema that does not say otherwise has
    only the properties that the schema names.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | Mapping[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def clone(self) -> "StructuredOutputsParams":
        """Returns a copy that shares no list and no mapping with this one."""
        return deepcopy(self)
