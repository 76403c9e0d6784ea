"""`response_format` of OpenAI and `structured_outputs` of vLLM -> StructuredOutputsParams.

Schemas stay the text that they came as: the engine checks their size before it reads them.
"""

from msgspec import Raw, Struct

from blora.scheduler import StructuredOutputsParams

from ...errors import InvalidRequest
from .requests import GenerationBody, is_given, listed

MAX_STRUCTURE_BYTES = 128 << 10  # of the whole field; a grammar in it has at most half of that


class StructureBody(Struct, kw_only=True):
    json: Raw = Raw()
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Raw = Raw()
    disable_any_whitespace: bool | None = False
    disable_additional_properties: bool | None = False
    whitespace_pattern: str | None = None


class JsonSchemaBody(Struct, kw_only=True):
    schema: Raw = Raw()


class FormatBody(Struct, kw_only=True):
    type: str
    json_schema: JsonSchemaBody | None = None


def structured_outputs(body: GenerationBody) -> StructuredOutputsParams | None:
    """Raises InvalidRequest."""
    by_format = _of_format(body.response_format) if is_given(body.response_format) else None
    by_field = _of_field(body.structured_outputs) if is_given(body.structured_outputs) else None
    if by_format is not None and by_field is not None:
        raise InvalidRequest("response_format", "is given besides structured_outputs; send one of the two")
    return by_format or by_field


def _of_field(raw: Raw) -> StructuredOutputsParams:
    _check_size("structured_outputs", raw)
    body: StructureBody = listed("structured_outputs", raw, StructureBody)
    return StructuredOutputsParams(
        json=_text("structured_outputs.json", body.json),
        regex=body.regex,
        choice=body.choice,
        grammar=body.grammar,
        json_object=body.json_object,
        structural_tag=_text("structured_outputs.structural_tag", body.structural_tag),
        disable_any_whitespace=bool(body.disable_any_whitespace),
        disable_additional_properties=bool(body.disable_additional_properties),
        whitespace_pattern=body.whitespace_pattern,
    )


def _of_format(raw: Raw) -> StructuredOutputsParams | None:
    _check_size("response_format", raw)
    body: FormatBody = listed("response_format", raw, FormatBody)
    match body.type:
        case "text":
            return None
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "json_schema":
            return StructuredOutputsParams(json=_schema(body.json_schema))
        case "structural_tag":
            return StructuredOutputsParams(structural_tag=_decoded("response_format", bytes(raw)))
    known = "text, json_object, json_schema and structural_tag"
    raise InvalidRequest("response_format.type", f"{body.type!r:.80} is none of {known}")


def _schema(body: JsonSchemaBody | None) -> str:
    text = None if body is None else _text("response_format.json_schema.schema", body.schema)
    if text is None:
        raise InvalidRequest("response_format.json_schema", "has no schema")
    return text


def _text(name: str, raw: Raw) -> str | None:
    """Returns JSON as its text. A schema may itself come as a text."""
    if not is_given(raw):
        return None
    data = bytes(raw)
    return str(listed(name, raw, str)) if data.startswith(b'"') else _decoded(name, data)


def _decoded(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(name, "is not valid UTF-8") from None


def _check_size(name: str, raw: Raw) -> None:
    size = len(bytes(raw))
    if size > MAX_STRUCTURE_BYTES:
        raise InvalidRequest(name, f"has {size} bytes; at most {MAX_STRUCTURE_BYTES} are read")
