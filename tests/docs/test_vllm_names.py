"""The table of vLLM's names: what it says is what the code does."""

from dataclasses import fields
from pathlib import Path

import pytest

import blora.engine
from blora.engine import LLM, AsyncLLM, EngineArgs, InvalidRequest, SamplingParams
from blora.engine.arguments.engine_args import engine_config
from blora.engine.arguments.frontend_args import FrontendArgs
from blora.engine.arguments.meaning import Kind, default_of, meaning_of, with_meaning
from blora.engine.arguments.unserved import UNSERVED
from docs.generators.vllm import make, parameters_of
from docs.generators.vllm_names import FIELDS, IGNORED, LACKING, METHODS, NOTES

ENGINES = [(name, method) for name, methods in METHODS.items() for method in methods]
TABLE = make().splitlines()


def row_of(heading: str, name: str) -> list[str]:
    """The cells of a name in the table below a heading."""
    start = TABLE.index(f"## {heading}")
    end = next((i for i in range(start + 1, len(TABLE)) if TABLE[i].startswith("## ")), len(TABLE))
    (row,) = [line for line in TABLE[start:end] if line.startswith(f"| `{name}` |")]
    return [cell.strip() for cell in row.strip("|").split(" | ")]


@pytest.mark.parametrize(("engine", "method"), ENGINES)
def test_a_method_is_served_or_refused_by_name(engine: str, method: str) -> None:
    is_here = hasattr(getattr(blora.engine, engine), method)
    assert is_here != (method in UNSERVED)
    assert (row_of(engine, method)[1] == "not served") != is_here


def test_a_signature_is_compared_with_vllms() -> None:
    assert row_of("LLM", "generate")[1:] == ["same", "without `tokenization_kwargs`, `mm_processor_kwargs`"]
    assert list(parameters_of("a, b=1, c=None")) == ["a", "b", "c"]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_a_value_is_in_its_table(name: str) -> None:
    for field, lacks in [(field, field in LACKING.get(name, {})) for field in FIELDS[name]]:
        assert row_of(name, field)[1] == (
            "not served" if lacks else "no meaning here" if field in IGNORED.get(name, {}) else row_of(name, field)[1]
        )
        assert lacks or hasattr(getattr(blora.engine, name), field)
    assert NOTES.get(name, {}).keys() <= FIELDS[name].keys() - LACKING.get(name, {}).keys()
    assert LACKING.get(name, {}).keys() | IGNORED.get(name, {}).keys() <= FIELDS[name].keys()


def test_a_field_of_sampling_that_is_not_served_is_refused(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model), memory="1MB", backend="reference")
    for name in LACKING["SamplingParams"]:
        with pytest.raises(InvalidRequest, match=name):
            llm.generate("a", SamplingParams(**{name: object()}), use_tqdm=False)


@pytest.mark.parametrize("cls", [EngineArgs, FrontendArgs])
def test_an_option_is_taken_or_refused_as_the_table_says(cls: type) -> None:
    for entry in fields(cls):
        kind = meaning_of(entry).kind
        if kind is Kind.NOT_SERVED:
            with pytest.raises(ValueError, match=f"^{entry.name}: "):
                with_meaning({entry.name: object()}, cls)
        elif kind is Kind.NO_MEANING:
            assert with_meaning({entry.name: object()}, cls) == {}
        elif kind in (Kind.SAME, Kind.OTHER_DEFAULT) and entry.name != "model":
            config = engine_config("m", **{entry.name: default_of(entry)})
            assert getattr(config, entry.name) == default_of(entry)


def test_engines_take_no_options_but_those_of_the_table() -> None:
    for engine in (LLM, AsyncLLM):
        with pytest.raises(ValueError, match="there is no option 'no_such_option'"):
            engine("m", no_such_option=1)  # type: ignore[operator]
