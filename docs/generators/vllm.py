"""The page of vLLM's names: what each means here, as the code says it."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import blora.engine
from blora.engine import EngineArgs
from blora.engine.arguments.frontend_args import FrontendArgs
from blora.engine.arguments.meaning import Kind, default_of, meaning_of
from blora.engine.arguments.unserved import UNSERVED

from .markdown import code, page, prose, table
from .vllm_names import FIELDS, IGNORED, LACKING, METHODS, NOTES, REQUIRED

NO_DEFAULT = inspect.Parameter.empty
HEAD = ("name", "here", "note")
Row = tuple[str, str, str]

# Flags of `vllm serve` that are neither options of the engine nor fields of FrontendArgs.
SERVE_FLAGS = {
    "--host": (Kind.OTHER_DEFAULT, "127.0.0.1; vLLM listens everywhere"),
    "--port": (Kind.OTHER_DEFAULT, "50051; vLLM's is 8000"),
    "--model": (Kind.SAME, "the argument MODEL is the same"),
    "--shutdown-timeout": (Kind.OTHER_DEFAULT, "20 seconds; vLLM's is 0"),
    "--ssl-certfile": (Kind.SAME, ""),
    "--ssl-keyfile": (Kind.SAME, ""),
    "--ssl-ca-certs": (Kind.SAME, "clients then have to show a certificate"),
    "--api-key": (Kind.SAME, "it takes a file with the keys, since flags can be read by everybody"),
    "--config": (Kind.SAME, ""),
    "--served-model-name": (Kind.SAME, "over HTTP"),
    "--allowed-origins": (Kind.SAME, "a list in JSON, or words"),
    "--lora-modules": (Kind.SAME, "--adapter takes the same NAME=PATH"),
}


def make() -> str:
    return page(
        "vLLM's names",
        "`engine/arguments/` and `docs/generators/vllm.py`",
        "Code written for vLLM runs with `from blora.engine import ...` in place of its imports of vLLM. For each name "
        "of vLLM's the tables say whether it means here what it means there. A name has *no meaning here* if ignoring "
        "it changes no answer: it is accepted, and one notice in the log names all of them. A name that is *not "
        "served* is refused.",
        *_classes(),
        "## Options of an engine",
        "The fields of `EngineArgs` and `AsyncEngineArgs`, which `LLM` and `AsyncLLM` take as keyword arguments and "
        "`blora serve` as flags: `max_loras` is `--max-loras`. blora's own options are on the "
        "[page of options](options.md).",
        table(HEAD, _options(EngineArgs)),
        "## Flags of vllm serve",
        "The flags that are no options of an engine.",
        table(HEAD, _flags()),
    )


def _classes() -> Iterator[str]:
    for name, methods in METHODS.items():
        yield f"## {name}"
        made = getattr(blora.engine, name).__name__
        if made != name:
            yield f"It is another name of `{made}`."
        yield table(HEAD, (_method(name, *entry) for entry in methods.items()))
    for name, entries in FIELDS.items():
        yield f"## {name}"
        yield table(HEAD, (_field(name, *entry) for entry in entries.items()))


def _method(class_name: str, name: str, parameters: str | None) -> Row:
    """What a method or an attribute of one of vLLM's classes is here. parameters: vLLM's."""
    found = getattr(getattr(blora.engine, class_name), name, None)
    if found is None:
        return code(name), Kind.NOT_SERVED.value, prose(UNSERVED[name])
    if parameters is None:
        return code(name), Kind.SAME.value, ""
    own, theirs = inspect.signature(found).parameters, parameters_of(parameters)
    others = [
        name for name, default in theirs.items() if name in own and default not in (own[name].default, NO_DEFAULT)
    ]
    notes = [code(f"{given}={own[given].default!r}") for given in others]
    kind = Kind.OTHER_DEFAULT if notes else Kind.SAME
    has_further = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own.values())
    lacking = [code(given) for given in theirs if given not in own and not has_further]
    return code(name), kind.value, "; ".join([*notes, *([f"without {', '.join(lacking)}"] if lacking else [])])


def parameters_of(text: str) -> dict[str, Any]:
    """The parameters of a signature as it is written, with their defaults."""
    (definition,) = ast.parse(f"def method({text}): ...").body
    assert isinstance(definition, ast.FunctionDef)
    arguments = definition.args
    names = [argument.arg for argument in arguments.args]
    defaults = [NO_DEFAULT] * (len(names) - len(arguments.defaults))
    return dict(zip(names, [*defaults, *map(ast.literal_eval, arguments.defaults)], strict=True))


def _field(class_name: str, name: str, default: object) -> Row:
    """What a field of one of vLLM's values is here. default: vLLM's."""
    cls = getattr(blora.engine, class_name)
    for kind, reasons in ((Kind.NOT_SERVED, LACKING), (Kind.NO_MEANING, IGNORED)):
        if reason := reasons.get(class_name, {}).get(name):
            return code(name), kind.value, prose(reason)
    own = {entry.name: default_of(entry) for entry in fields(cls)}
    if name not in own or default is REQUIRED or own[name] == default:
        assert hasattr(cls, name)
        return code(name), Kind.SAME.value, NOTES.get(class_name, {}).get(name, "")
    return code(name), Kind.OTHER_DEFAULT.value, code(repr(own[name]))


def _options(cls: type[Any]) -> Iterator[Row]:
    for entry in fields(cls):
        kind = meaning_of(entry).kind
        if kind is not Kind.OWN:
            yield code(entry.name), kind.value, _note(entry)


def _note(entry: Any) -> str:
    meaning = meaning_of(entry)
    text = prose(meaning.note)
    if meaning.kind is Kind.NOT_SERVED:
        return f"only {', '.join(code(repr(value)) for value in meaning.values)}: {text}"
    if meaning.kind is Kind.OTHER_DEFAULT:
        return f"{code(repr(default_of(entry)))}; {text}"
    return text


def _flags() -> Iterator[Row]:
    for name, (kind, note) in SERVE_FLAGS.items():
        yield code(name), kind.value, prose(note)
    for entry in fields(FrontendArgs):
        yield code("--" + entry.name.replace("_", "-")), meaning_of(entry).kind.value, _note(entry)
