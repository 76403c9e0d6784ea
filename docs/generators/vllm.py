"""The page of vLLM's names: what each means here, as the code says it."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from blora.engine import EngineArgs
from blora.engine.arguments.frontend_args import FrontendArgs
from blora.engine.arguments.meaning import Kind, default_of, meaning_of

from .markdown import code, page, prose, table

# Flags of `vllm serve` that are neither options of the engine nor fields of FrontendArgs.
SERVE_FLAGS = {
    "--host": (Kind.OTHER_DEFAULT, "127.0.0.1; vLLM listens everywhere"),
    "--port": (Kind.OTHER_DEFAULT, "50051; vLLM's is 8000"),
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
        "## Options of an engine",
        "The fields of `EngineArgs` and `AsyncEngineArgs`, which `LLM` and `AsyncLLM` take as keyword arguments and "
        "`blora serve` as flags: `max_loras` is `--max-loras`. blora's own options are on the "
        "[page of options](options.md).",
        table(("option", "here", "note"), _options(EngineArgs)),
        "## Flags of vllm serve",
        "The flags that are no options of an engine.",
        table(("flag", "here", "note"), _flags()),
    )


def _options(cls: type[Any]) -> Iterator[tuple[str, str, str]]:
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


def _flags() -> Iterator[tuple[str, str, str]]:
    for name, (kind, note) in SERVE_FLAGS.items():
        yield code(name), kind.value, prose(note)
    for entry in fields(FrontendArgs):
        yield code("--" + entry.name.replace("_", "-")), meaning_of(entry).kind.value, _note(entry)
