"""PeftConfig: the checked content of an `adapter_config.json`. Knows PEFT's rules for patterns and targets, no tensor.

The rules are PEFT's own (tuners_utils.check_target_module_exists, get_pattern_key): patterns are regular expressions
that have to match a module's whole name or its end after a dot, and the first match wins.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from .bounded_match import BoundedMatcher, PatternTooSlow
from .fields import MLX, unknown_fields, unserved_fields

MAX_CONFIG_BYTES = 64 * 1024
MAX_RANK = 1024
MAX_INVOCATION_TOKENS = 256
MAX_PATTERN_LENGTH = 512  # characters; patterns come from the file and are evaluated

BIASES = ("none", "all", "lora_only")
TASK_TYPES = (None, "CAUSAL_LM")
# These initialisations leave the base weights as they are. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA subtract from them,
# so that their A and B are no change of the served model. When save_pretrained converts an adapter
# (path_initial_model_for_weight_conversion), A and B are such a change, and PEFT records True.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")

# How PEFT puts a pattern into a larger one.
WHOLE = "{}"
AT_THE_END = r"(.*\.)?({})$"
PLAIN_NAME = re.compile(r"[\w.]+", re.ASCII)  # its dots match any character
BEFORE_A_LAYER = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."

Value = TypeVar("Value", int, float)


class ConfigError(ValueError):
    """The configuration cannot be served; `problems` names every reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(self.problems)


@dataclass(frozen=True, slots=True)
class PeftConfig:
    rank: int
    alpha: float
    use_rslora: bool
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: frozenset[int] | None = None
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    invocation_tokens: tuple[int, ...] = ()  # of an activated LoRA (aLoRA, arXiv 2504.12397); else empty
    bias: str = "none"  # modules whose biases were trained: "all", "lora_only" (the targeted modules) or "none"
    lora_bias: bool = False  # B has a bias
    use_dora: bool = False
    modules_to_save: tuple[str, ...] = ()  # modules that were trained as a whole
    trained_tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # module -> ids of trained rows
    ensure_weight_tying: bool = False  # training of the embedding holds for a head that is tied to it, too
    unknown_fields: tuple[str, ...] = ()  # names of fields that PEFT does not know, without influence
    base_model: str = ""  # the name of the model that was trained, or ""; for messages only
    trained_as: Mapping[str, str] = field(default_factory=dict)  # module -> its name in training, where it was another
    _matcher: BoundedMatcher = field(default_factory=BoundedMatcher, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """The authors' name for this kind of adapter."""
        if self.invocation_tokens:
            return "aLoRA"
        if self.use_dora:
            return "DoRA"
        return "rsLoRA" if self.use_rslora else "LoRA"

    def with_names(self, names: Mapping[str, Sequence[str]]) -> "PeftConfig":
        """Returns the configuration for modules that had other names in training, to which its patterns refer. names:
        module -> its possible names; the first one that is trained counts."""
        chosen = {
            module: next((name for name in possible if self.targets(name) or self.saves(name)), module)
            for module, possible in names.items()
        }
        return replace(self, trained_as=chosen)

    def rank_of(self, module: str) -> int:
        return self._first_match("rank_pattern", self.rank_pattern, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """Returns alpha / r, or alpha / sqrt(r) with rank stabilisation (rsLoRA, arXiv 2312.03732)."""
        rank = self.rank_of(module)
        alpha = self._first_match("alpha_pattern", self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def saves(self, module: str) -> bool:
        """Returns whether the module was trained as a whole."""
        return any(self.trained_as.get(module, module).endswith(name) for name in self.modules_to_save)

    def tokens_of(self, module: str) -> tuple[int, ...]:
        """Returns the token ids of the module's trained rows."""
        module = self.trained_as.get(module, module)
        named = (ids for name, ids in self.trained_tokens.items() if module == name or module.endswith(f".{name}"))
        return next(named, ())

    def targets(self, module: str) -> bool:
        """Returns whether PEFT would have put LoRA on the module of this name."""
        module = self.trained_as.get(module, module)
        if self._is_named("exclude_modules", self.exclude_modules, module):
            return False
        is_named = self.target_modules == "all-linear" or self._is_named("target_modules", self.target_modules, module)
        if isinstance(self.target_modules, str) or module in self.target_modules:
            return is_named
        return is_named and self._transforms_layer_of(module)

    def _transforms_layer_of(self, module: str) -> bool:
        if self.layers_to_transform is None:
            return True
        patterns = self.layers_pattern or (r"[^.]*",)
        matches = (self._match("layers_pattern", pattern, BEFORE_A_LAYER, module) for pattern in patterns)
        match = next((match for match in matches if match), None)
        # A pattern with a bar may match without reaching the index.
        return match is not None and match["idx"] is not None and int(match["idx"]) in self.layers_to_transform

    def _first_match(self, field_name: str, patterns: Mapping[str, Value], module: str, default: Value) -> Value:
        name = self.trained_as.get(module, module)
        likely = ((key, value) for key, value in patterns.items() if _may_end(name, key))
        matching = (value for key, value in likely if self._match(field_name, key, AT_THE_END, name))
        return next(matching, default)

    def _is_named(self, field_name: str, names: str | tuple[str, ...], module: str) -> bool:
        if isinstance(names, str):
            return bool(names) and self._match(field_name, names, WHOLE, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in names)

    def _match(self, field_name: str, pattern: str, form: str, module: str) -> re.Match[str] | None:
        """Matches a pattern as PEFT does. Raises ConfigError if it takes too long."""
        match = self._matcher.fullmatch if form == WHOLE else self._matcher.match
        try:
            return match(form.format(pattern), module)
        except PatternTooSlow:
            raise ConfigError([f"{field_name}: {pattern!r} takes too long to match {module!r}"]) from None


def _may_end(name: str, pattern: str) -> bool:
    """Whether a pattern can match a name at its end. Patterns that are plain names, of which there can be one for each
    module, are mostly told apart without the matcher."""
    return PLAIN_NAME.fullmatch(pattern) is None or name.endswith(pattern.rpartition(".")[2])


def parse_config(content: bytes) -> PeftConfig:
    """Reads the JSON of an `adapter_config.json`. Raises ConfigError with everything that cannot be served."""
    fields = _parse_json(content)
    problems = [*_unserved_values(fields), *unserved_fields(fields)]
    reader = _Fields(fields, problems)
    config = PeftConfig(
        rank=reader.rank("r", fields.get("r", 8)),
        alpha=reader.number("lora_alpha", fields.get("lora_alpha", 8)),
        use_rslora=reader.boolean("use_rslora"),
        target_modules=reader.modules("target_modules"),
        exclude_modules=reader.modules("exclude_modules"),
        layers_to_transform=reader.layers("layers_to_transform"),
        layers_pattern=reader.layers_pattern("layers_pattern"),
        rank_pattern={key: reader.rank(f"rank_pattern[{key}]", r) for key, r in reader.pattern("rank_pattern")},
        alpha_pattern={key: reader.number(f"alpha_pattern[{key}]", a) for key, a in reader.pattern("alpha_pattern")},
        invocation_tokens=reader.tokens("alora_invocation_tokens"),
        bias=reader.choice("bias", BIASES),
        lora_bias=reader.boolean("lora_bias"),
        use_dora=reader.boolean("use_dora"),
        modules_to_save=_as_tuple(reader.modules("modules_to_save")),
        trained_tokens=reader.trained_tokens("trainable_token_indices"),
        ensure_weight_tying=reader.boolean("ensure_weight_tying"),
        unknown_fields=unknown_fields(fields),
        base_model=str(fields.get("base_model_name_or_path") or ""),
    )
    if config.use_dora and config.lora_bias:
        problems.append("lora_bias: is not defined together with use_dora")
    if config.invocation_tokens and config.use_dora:
        problems.append("use_dora: is not defined together with alora_invocation_tokens")
    for name in ("modules_to_save", "trainable_token_indices") if config.invocation_tokens else ():
        if fields.get(name):
            problems.append(f"{name}: changes rows before the invocation, too, which have to be base rows")
    if config.invocation_tokens and config.bias != "none":
        problems.append(f"bias: {config.bias!r} changes rows before the invocation, too, which have to be base rows")
    if not config.target_modules:
        problems.append("target_modules: names no module")
    if problems:
        raise ConfigError(problems)
    return config


def _parse_json(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError([f"adapter_config.json has {len(content)} bytes, at most {MAX_CONFIG_BYTES} are read"])
    try:
        fields = json.loads(content, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"adapter_config.json is not valid JSON: {error}"]) from error
    if not isinstance(fields, dict):
        raise ConfigError(["adapter_config.json is not a JSON object"])
    return fields


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object has a key twice")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unserved_values(fields: Mapping[str, Any]) -> list[str]:
    problems = []
    if "peft_type" not in fields and MLX & fields.keys():
        problems.append(
            "adapter_config.json is one of mlx-lm, not of PEFT: convert the adapter; its lora_a and lora_b are the"
            " transposes of PEFT's lora_A and lora_B, and lora_alpha is its scale times the rank"
        )
    elif fields.get("peft_type") != "LORA":
        problems.append(f"peft_type: {fields.get('peft_type')!r} is not 'LORA'")
    if fields.get("task_type") not in TASK_TYPES:
        problems.append(f"task_type: {fields.get('task_type')!r} is not 'CAUSAL_LM'")
    initialisation = fields.get("init_lora_weights", True)
    if initialisation not in PLAIN_INITIALISATIONS:
        problems.append(
            f"init_lora_weights: {initialisation!r} changes the base weights, which are shared; save it converted"
            " (path_initial_model_for_weight_conversion)"
        )
    return problems


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return ((names,) if names else ()) if isinstance(names, str) else names


class _Fields:
    """Reads typed values out of the JSON object and notes a problem for each value of the wrong form."""

    def __init__(self, fields: Mapping[str, Any], problems: list[str]) -> None:
        self._fields = fields
        self._problems = problems

    def rank(self, name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
            self._problems.append(f"{name}: {value!r} is not an integer from 1 to {MAX_RANK}")
            return 1
        return value

    def number(self, name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= 1e6:
            self._problems.append(f"{name}: {value!r} is not a finite number of at most 1e6")
            return 1.0
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self._fields.get(name)
        if value is not None and not isinstance(value, bool):
            self._problems.append(f"{name}: {value!r} is not a boolean")
        return value is True

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """Returns the field's value. The first choice is the default."""
        value = self._fields.get(name)
        if value is None:
            return choices[0]
        if value not in choices:
            self._problems.append(f"{name}: {value!r} is not one of {', '.join(choices)}")
            return choices[0]
        return str(value)

    def modules(self, name: str) -> str | tuple[str, ...]:
        value = self._fields.get(name)
        if value is None:
            return ()
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(entry, str) for entry in names):
            self._problems.append(f"{name}: {value!r} is neither a string nor a list of strings")
            return ()
        if isinstance(value, str) and value != "all-linear" and not self._is_pattern(name, value, WHOLE):
            return ()
        return value if isinstance(value, str) else tuple(names)

    def layers(self, name: str) -> frozenset[int] | None:
        value = self._fields.get(name)
        if value is None or value == []:
            return None
        layers = [value] if isinstance(value, int) else value
        if not isinstance(layers, list) or not all(type(layer) is int and layer >= 0 for layer in layers):
            self._problems.append(f"{name}: {value!r} is neither an index nor a list of indices")
            return None
        return frozenset(layers)

    def tokens(self, name: str) -> tuple[int, ...]:
        value = self._fields.get(name)
        if value is None:
            return ()
        is_list = isinstance(value, list) and 1 <= len(value) <= MAX_INVOCATION_TOKENS
        if not is_list or not all(type(token) is int and token >= 0 for token in value):
            self._problems.append(f"{name}: {value!r:.200} is not a list of 1 to {MAX_INVOCATION_TOKENS} token ids")
            return ()
        return tuple(value)

    def trained_tokens(self, name: str) -> dict[str, tuple[int, ...]]:
        """Returns the trained token ids of each module. A plain list belongs to the embedding."""
        value = self._fields.get(name)
        if value is None:
            return {}
        by_module = {"embed_tokens": value} if isinstance(value, list) else value
        if not isinstance(by_module, dict):
            self._problems.append(f"{name}: {value!r:.140} is neither a list nor an object of lists")
            return {}
        for module, ids in by_module.items():
            is_list = isinstance(ids, list) and all(type(entry) is int and entry >= 0 for entry in ids)
            if not is_list or len(set(ids)) != len(ids):
                self._problems.append(f"{name}: {ids!r:.140} of {module} is not a list of distinct token ids")
                return {}
        return {module: tuple(ids) for module, ids in by_module.items()}

    def layers_pattern(self, name: str) -> tuple[str, ...]:
        patterns = _as_tuple(self.modules(name))
        return tuple(pattern for pattern in patterns if self._is_pattern(name, pattern, BEFORE_A_LAYER))

    def pattern(self, name: str) -> list[tuple[str, Any]]:
        value = self._fields.get(name) or {}
        if not isinstance(value, dict):
            self._problems.append(f"{name}: {value!r} is not an object")
            return []
        return [(key, entry) for key, entry in value.items() if self._is_pattern(name, key, AT_THE_END)]

    def _is_pattern(self, name: str, pattern: str, form: str) -> bool:
        try:
            re.compile(pattern)
            re.compile(form.format(pattern))  # fails for flags and group names that the pattern alone may have
        except (re.error, RecursionError, OverflowError) as error:
            self._problems.append(f"{name}: {pattern!r} is not a regular expression ({error})")
            return False
        if len(pattern) > MAX_PATTERN_LENGTH:
            self._problems.append(f"{name}: a pattern of {len(pattern)} characters, at most {MAX_PATTERN_LENGTH}")
            return False
        return True
