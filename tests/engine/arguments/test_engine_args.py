"""EngineArgs: vLLM's names for the options of an engine, what each means here, and their flags."""

import argparse
import logging
from dataclasses import MISSING, fields
from typing import Any

import pytest

from blora.engine import AsyncEngineArgs, EngineArgs, FlexibleArgumentParser
from blora.engine.arguments.engine_args import engine_config
from blora.engine.arguments.flags import SHOWN
from blora.engine.arguments.frontend_args import FrontendArgs
from blora.engine.arguments.meaning import Kind, default_of, meaning_of
from blora.engine.config import EngineConfig

SERVED = (Kind.SAME, Kind.OTHER_DEFAULT, Kind.OWN)


def test_every_option_of_the_configuration_has_a_name_here_and_the_same_default() -> None:
    served = {entry.name: default_of(entry) for entry in fields(EngineArgs) if meaning_of(entry).kind in SERVED}
    own = {entry.name: default_of(entry) for entry in fields(EngineConfig) if entry.default is not MISSING}
    own |= {entry.name: entry.default_factory() for entry in fields(EngineConfig) if callable(entry.default_factory)}
    # vLLM's own: a model to try, and a seed that makes a script give the same output each time it runs.
    assert served == own | {"model": "Qwen/Qwen3-0.6B", "seed": 0}


def test_every_option_says_what_it_means() -> None:
    for entry in (*fields(EngineArgs), *fields(FrontendArgs)):
        meaning = meaning_of(entry)
        assert meaning.note or meaning.kind in (Kind.SAME, Kind.OWN), entry.name
        assert bool(meaning.values) == (meaning.kind is Kind.NOT_SERVED), entry.name


def test_a_default_of_vllm_gives_no_notice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = EngineArgs(model="m").create_engine_config()
    assert config == EngineConfig(model="m", seed=0) and not caplog.records


def test_options_without_a_meaning_get_one_notice(caplog: pytest.LogCaptureFixture) -> None:
    args = EngineArgs(model="m", enable_lora=True, max_loras=4, limit_mm_per_prompt={"image": 0}, max_num_seqs=7)
    with caplog.at_level(logging.WARNING):
        assert args.create_engine_config().max_num_seqs == 7
    (record,) = caplog.records
    for name in ("enable_lora", "max_loras", "limit_mm_per_prompt"):
        assert f"{name} is ignored: " in record.getMessage()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quantization", "awq"),
        ("tokenizer", "other/model"),
        ("hf_overrides", {"rope_theta": 1.0}),
        ("override_generation_config", {"temperature": 0.0}),
        ("logits_processors", ["some.Class"]),
        ("data_parallel_size", 2),
        ("runner", "pooling"),
        ("disable_sliding_window", True),
        ("no_such_option", 1),
    ],
)
def test_what_would_change_answers_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        engine_config("m", **{name: value})


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"block_size": None, "enable_prefix_caching": None, "max_num_seqs": None, "max_num_queued_reqs": None}, {}),
        ({"hf_overrides": {}, "tokenizer": "m", "runner": "generate", "quantization": "gguf"}, {}),
        ({"dtype": "half", "enforce_eager": None}, {"dtype": "float16"}),
        ({"host_cache": None}, {"host_cache": None}),
    ],
)
def test_values_that_scripts_pass(options: dict[str, Any], same: dict[str, Any]) -> None:
    assert engine_config("m", **options) == EngineConfig(model="m", **same)


@pytest.mark.parametrize("make", [argparse.ArgumentParser, FlexibleArgumentParser])
def test_flags_become_arguments_of_an_engine(make: type[argparse.ArgumentParser]) -> None:
    parser = EngineArgs.add_cli_args(make())
    parser.add_argument("--max-tokens", type=int)
    line = (
        "--model m --max-model-len 99 --enable-lora --max-loras 4 -tp 2 --no-enable-prefix-caching -O3 --max-tokens=3"
    )
    args = parser.parse_args(line.split())
    given = EngineArgs.from_cli_args(args)
    assert given == EngineArgs(
        model="m",
        max_model_len=99,
        enable_lora=True,
        max_loras=4,
        tensor_parallel_size=2,
        enable_prefix_caching=False,
        optimization_level=3,
    )
    expected = EngineConfig(model="m", max_model_len=99, tensor_parallel_size=2, enable_prefix_caching=False, seed=0)
    assert given.create_engine_config() == expected


@pytest.mark.parametrize(("text", "expected"), [("900", 900), ("16k", 16000), ("16K", 16384), ("1m", 1000000)])
def test_numbers_of_tokens_have_units(text: str, expected: int) -> None:
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
    assert parser.parse_args(["--max-model-len", text]).max_model_len == expected


@pytest.mark.parametrize("text", ["k", "0", "0k", "1.5", "-1", "", "16kk"])
def test_odd_numbers_of_tokens_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
    with pytest.raises(SystemExit):
        parser.parse_args([f"--max-model-len={text}"])
    assert "--max-model-len" in capsys.readouterr().err


def test_a_group_takes_the_flags_and_defaults_can_be_set() -> None:
    parser = FlexibleArgumentParser()
    group = parser.add_argument_group("Engine arguments")
    AsyncEngineArgs.add_cli_args(group)
    group.set_defaults(model="mine")
    args = vars(parser.parse_args(["--max_num_seqs=5"]))
    assert (args["model"], args["max_num_seqs"]) == ("mine", 5)
    assert engine_config(**args) == EngineConfig(model="mine", max_num_seqs=5, seed=0)


def test_a_flag_is_shown_if_it_has_a_meaning() -> None:
    served = {entry.name for entry in fields(EngineArgs) if meaning_of(entry).kind in SERVED}
    assert served == SHOWN.keys()
    text = EngineArgs.add_cli_args(argparse.ArgumentParser()).format_help()
    assert "--max-num-seqs" in text and "--max-loras" not in text
