"""The page of the Python API: the public names of blora.engine and the client, with their docstrings."""

import inspect
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import blora.engine
from blora.engine import EngineArgs
from blora.proto import results
from blora.proto.client import Client, ErrorDetails, GenerationStream, Results

from .markdown import page, prose
from .source import alias_as_written, doc_of, fields_as_written, functions_of

GROUPS: dict[str, Sequence[str]] = {
    "Engines": ("LLM", "LLMEngine", "AsyncLLM", "AsyncLLMEngine"),
    "Options under vLLM's names": ("EngineArgs", "AsyncEngineArgs", "EngineConfig", "FlexibleArgumentParser"),
    "Requests": ("SamplingParams", "StructuredOutputsParams", "RequestOutputKind", "LoRARequest"),
}


# The results of a client whose fields are not those of a message alone.
RESULTS = (
    results.Generation,
    results.PromptInfo,
    results.Timings,
    results.Sample,
    results.PositionLogprobs,
    results.TokenLogprob,
    results.BatchResult,
    results.Refusal,
    results.Tokens,
    results.AdapterInfo,
    results.AdapterSnapshot,
    results.AdapterEvent,
    results.LoadSnapshot,
)


def make() -> str:
    names = [name for group in GROUPS.values() for name in group]
    others = [name for name in blora.engine.__all__ if name not in names]
    errors = [name for name in others if _is_error(getattr(blora.engine, name))]
    groups = {**GROUPS, "Answers and facts": [name for name in others if name not in errors], "Errors": errors}
    return page(
        "Python API",
        "the docstrings",
        "Import these names from `blora.engine`; the client is in `blora.proto.client` and needs no engine. Names "
        "outside this page may change without notice.",
        *(part for title, members in groups.items() for part in _group(title, members)),
        "## Client",
        "From `blora.proto.client`, which also has `AsyncClient`, with the same arguments and methods for asyncio. "
        "What the fields of results mean is in the [gRPC reference](grpc.md).",
        *_class(Client),
        *_class(GenerationStream),
        *_class(Results),
        *_class(ErrorDetails),
        "## Results of a client",
        "From `blora.proto.results`.",
        *(part for kind in RESULTS for part in _class(kind)),
    )


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _group(title: str, names: Sequence[str]) -> Iterator[str]:
    yield f"## {title}"
    for name in names:
        value = getattr(blora.engine, name)
        yield from _class(value, name) if isinstance(value, type) else _alias(name)


def _alias(name: str) -> Iterator[str]:
    home = import_module(blora.engine._HOMES[name], "blora.engine")
    yield f"### {name}"
    yield _python(alias_as_written(name, Path(inspect.getfile(home))))


def _class(cls: type[Any], name: str = "") -> Iterator[str]:
    """name: by which the class is public, if it is not its own."""
    if name not in ("", cls.__name__):
        yield f"### {name}"
        yield f"Another name of `{cls.__name__}`."
        return
    yield f"### {cls.__name__}"
    yield prose(doc_of(cls))
    fields = "" if cls is EngineArgs else fields_as_written(cls)  # two hundred, on the page of vLLM's names
    if fields:
        yield _python(fields)
    for function in functions_of(cls):
        if function.name != "__init__":
            yield f"#### {cls.__name__}.{function.name}"
        yield _python(function.signature)
        yield prose(function.doc)


def _python(text: str) -> str:
    return f"```python\n{text}\n```"
