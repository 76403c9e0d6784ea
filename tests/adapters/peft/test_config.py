"""PeftConfig against PEFT itself: both target the same modules, with the same ranks and scalings."""

import json
from typing import Any

import peft
import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key

from blora.adapters.peft.config import ConfigError, parse_config
from blora.adapters.peft.fields import KNOWN, NEWEST_PEFT

PROJECTIONS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "mlp.experts.3.up_proj", "mlp.xq_proj")
MODULES = [f"model.layers.{layer}.{name}" for layer in (0, 1, 2, 11) for name in PROJECTIONS] + ["lm_head", "q_proj"]

SELECTIONS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj"]},
    {"target_modules": ["q_proj", "mlp.down_proj"]},
    {"target_modules": ["model.layers.1.self_attn.q_proj", "down_proj"]},
    {"target_modules": r".*\.(q|v)_proj"},
    {"target_modules": r"(?i).*Q_PROJ"},
    {"target_modules": r"model\.layers\.[12]\.self_attn\..*"},
    {"target_modules": "q_proj"},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.1\..*"},
    {"target_modules": ["q_proj"], "exclude_modules": ["model.layers.2.self_attn.q_proj"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1, 11]},
    {"target_modules": ["q_proj"], "layers_to_transform": 1},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [3]},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0], "layers_pattern": ["layers"]},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [3], "layers_pattern": ["h", "experts"]},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": ["(layers|h)"]},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": ["layers|h"]},
    {"target_modules": ["model.layers.1.self_attn.q_proj"], "layers_to_transform": [0]},
]

PATTERNS: list[dict[str, Any]] = [
    {"q.proj": 2, "layers.1.self_attn": 3, "self_attn.q_proj.": 5, "proj": 7},
    {},
    {"q_proj": 3},
    {"self_attn.q_proj": 3, "q_proj": 5},
    {"q_proj": 5, "self_attn.q_proj": 3},
    {r"layers\.1\..*": 7},
    {r".*\.1\.mlp\.down_proj": 2, "down_proj": 6},
    {"^q_proj": 9},
    {"proj": 4},
    {"q_proj|v_proj": 6},
    {"model.layers.11.self_attn.v_proj": 12},
]


def parse(**fields: Any) -> Any:
    return parse_config(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]} | fields).encode())


@pytest.mark.parametrize("fields", SELECTIONS, ids=str)
def test_targets_are_those_of_peft(fields: dict[str, Any]) -> None:
    ours, theirs = parse(**fields), LoraConfig(**fields)
    found = [check_target_module_exists(theirs, module) for module in MODULES]
    expected = [
        module for module, hit in zip(MODULES, found, strict=True) if hit and not isinstance(hit, _ExcludedModule)
    ]
    assert [module for module in MODULES if ours.targets(module)] == expected


def test_all_linear_targets_every_module_but_the_excluded() -> None:
    config = parse(target_modules="all-linear", exclude_modules=["lm_head"])
    assert [module for module in MODULES if not config.targets(module)] == ["lm_head"]


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_and_scalings_are_those_of_peft(patterns: dict[str, int], use_rslora: bool) -> None:
    alphas = {key: value + 0.5 for key, value in patterns.items()}
    config = parse(r=8, lora_alpha=16, rank_pattern=patterns, alpha_pattern=alphas, use_rslora=use_rslora)
    for module in MODULES:
        key = get_pattern_key(patterns.keys(), module)
        rank, alpha = patterns.get(key, 8), alphas.get(key, 16)
        assert config.rank_of(module) == rank
        assert config.scaling_of(module) == pytest.approx(alpha / (rank**0.5 if use_rslora else rank), rel=1e-15)


def test_defaults_are_those_of_peft() -> None:
    config, default = parse(), LoraConfig()
    assert (config.rank, config.alpha, config.use_rslora) == (default.r, default.lora_alpha, default.use_rslora)


def test_every_field_that_peft_writes_is_known() -> None:
    fields = LoraConfig(target_modules=["q_proj"]).to_dict()
    fields["target_modules"] = ["q_proj"]
    assert parse(**fields).target_modules == ("q_proj",)
    assert fields.keys() <= KNOWN
    assert peft.__version__ == ".".join(map(str, NEWEST_PEFT))


def test_what_only_an_initialisation_or_another_layer_type_reads_is_harmless() -> None:
    plain = parse(target_modules=["q_proj"])
    assert parse(target_modules=["q_proj"], corda_config={"use_float16_for_covariance": True}) == plain
    assert parse(target_modules=["q_proj"], fan_in_fan_out=True) == plain


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(r=0, lora_alpha="x", use_qalora=True, use_dora=1, bias="some", target_modules="(")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "use_qalora",
        "r",
        "lora_alpha",
        "target_modules",
        "bias",
        "use_dora",
        "target_modules",
    ]
