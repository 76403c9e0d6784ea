"""The page of options: the fields of EngineConfig."""

import inspect
import re
from collections.abc import Iterator, Mapping

from blora.engine.cli.main import build_parser
from blora.engine.config import BACKENDS, DTYPES, KV_CACHE_DTYPES, EngineConfig
from blora.scheduler import POLICIES

from .cli import Flag, commands_of, flags_of
from .markdown import code, page, sentence, table
from .source import Field, fields_of

VALUES = {
    "backend": BACKENDS,
    "dtype": DTYPES,
    "kv_cache_dtype": KV_CACHE_DTYPES,
    "scheduling_policy": POLICIES,
    "generation_config": ("auto", "vllm"),
}

# Source of a default value -> the value for a reader.
DEFAULTS = {"field(default_factory=dict)": "{}", "64 << 20": "64 MiB"}


def make() -> str:
    fields = list(fields_of(EngineConfig))
    return page(
        "Options of the engine",
        "`engine/config.py`",
        "`LLM(model, ...)` and `AsyncLLM(model, ...)` take these as keyword arguments. `blora serve` takes them as "
        "flags: `max_num_seqs` is `--max-num-seqs`"
        + _without_flag(fields)
        + ". A size is a number of bytes, a text such as "
        "`2GiB` or `512M`, or a fraction of the free memory, such as `0.5`.",
        table(("option", "type", "default", "meaning"), _rows(fields)),
        "Options of vLLM that are not in this table are taken or refused as [the table of vLLM's names](vllm.md) "
        "says. Any other name is refused.",
    )


def _rows(fields: list[Field]) -> Iterator[tuple[str, ...]]:
    described, flags = _described(fields), _flags()
    for field in fields:
        texts = [field.comment, described.get(field.name, "")]
        if not any(texts):
            texts = [flags[field.name].text]
        if field.name in VALUES:
            texts.append("One of " + ", ".join(f"`{value}`" for value in VALUES[field.name]))
        default = "required" if field.default is None else code(DEFAULTS.get(field.default, field.default))
        yield code(field.name), code(field.type), default, " ".join(map(sentence, filter(None, texts)))


def _without_flag(fields: list[Field]) -> str:
    names = [code(field.name) for field in fields if field.name not in _flags()]
    return f" ({', '.join(names)} has no flag)" if names else ""


def _described(fields: list[Field]) -> Mapping[str, str]:
    """The entries "name: text" of the docstring."""
    names = "|".join(field.name for field in fields)
    parts = re.split(rf"(?:^|(?<=[.;]\s)|(?<=\n))\s*({names}): ", inspect.getdoc(EngineConfig) or "")
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _flags() -> Mapping[str, Flag]:
    serve = next(command for command in commands_of(build_parser()) if command.name == "blora serve")
    return {flag.dest: flag for flag in flags_of(serve)}
