"""The page of options: what EngineConfig has, its flags of `blora serve`, and options of vLLM that it answers for."""

import inspect
import re
from collections.abc import Iterator, Mapping

from blora.engine.cli.main import build_parser
from blora.engine.config import BACKENDS, DTYPES, KV_CACHE_DTYPES, EngineConfig
from blora.engine.options import REPLACED, SINGLE
from blora.scheduler import POLICIES

from .cli import Flag, commands_of, flags_of
from .markdown import code, page, prose, sentence, table
from .source import Field, fields_of

VALUES = {
    "backend": BACKENDS,
    "dtype": DTYPES,
    "kv_cache_dtype": KV_CACHE_DTYPES,
    "scheduling_policy": POLICIES,
    "generation_config": ("auto", "vllm"),
}

# What is written to make a value, and the value as a reader would write it.
DEFAULTS = {"field(default_factory=dict)": "{}", "64 << 20": "64 MiB"}


def make() -> str:
    fields = list(fields_of(EngineConfig))
    return page(
        "Options of the engine",
        "`engine/config.py` and `engine/options.py`",
        "`LLM(model, ...)` and `AsyncLLM(model, ...)` take these as keyword arguments; `blora serve` takes the flags. "
        "A size is a number of bytes, a text such as `2GiB` or `512M`, or a fraction of what is free, such as `0.5`.",
        table(("option", "type", "default", "flag", "what it does"), _rows(fields)),
        "## Options of vLLM",
        "These are accepted, and a line of the log says what takes their place:",
        table(("option", "instead"), ((code(name), prose(text)) for name, text in REPLACED.items())),
        "These are accepted with one value only:",
        table(("option", "value"), ((code(name), code(repr(value))) for name, value in SINGLE.items())),
        "Any other name is refused.",
    )


def _rows(fields: list[Field]) -> Iterator[tuple[str, ...]]:
    described, flags = _described(fields), _flags()
    for field in fields:
        flag = flags.get(field.name)
        texts = [field.comment, described.get(field.name, "")]
        if not any(texts) and flag is not None:
            texts = [flag.text]
        if field.name in VALUES:
            texts.append("One of " + ", ".join(f"`{value}`" for value in VALUES[field.name]))
        default = "required" if field.default is None else code(DEFAULTS.get(field.default, field.default))
        name = "" if flag is None else code(flag.names.split()[0].rstrip(","))
        yield code(field.name), code(field.type), default, name, " ".join(map(sentence, filter(None, texts)))


def _described(fields: list[Field]) -> Mapping[str, str]:
    """The entries "name: text" of the docstring."""
    names = "|".join(field.name for field in fields)
    parts = re.split(rf"(?:^|(?<=[.;]\s)|(?<=\n))\s*({names}): ", inspect.getdoc(EngineConfig) or "")
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _flags() -> Mapping[str, Flag]:
    serve = next(command for command in commands_of(build_parser()) if command.name == "blora serve")
    return {flag.dest: flag for flag in flags_of(serve)}
