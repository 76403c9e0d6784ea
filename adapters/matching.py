"""Matching the tensors of a PEFT checkpoint with a model's modules: strict, and with every problem named.

Every tensor must land on a module of the model with the right shape and finite values, and everything that the
configuration trains must have its tensors. numpy only.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from .base_tensors import BaseTensors
from .lora_module import Array, LoRAModule, TrainedRows, dora_gain
from .peft_config import PeftConfig
from .targets import TargetKind, TargetModule

PREFIX = "base_model.model."
LINEAR_PARTS = ("lora_A.weight", "lora_B.weight")
EMBEDDING_PARTS = ("lora_embedding_A", "lora_embedding_B")
TOKENS_PART = "token_adapter.trainable_tokens_delta"  # whole rows in spite of its name
MAX_VALUE = 65504.0  # of a weight: the largest float16, so that no model's type turns one into infinity


class Matcher:
    """One checkpoint's tensors, taken by the modules they land on; `problems` says what did not fit."""

    def __init__(
        self, tensors: dict[str, Array], config: PeftConfig, targets: Sequence[TargetModule], base: BaseTensors | None
    ) -> None:
        self._tensors = tensors
        self._left = dict(tensors)
        self._config = config
        self._targets = targets
        self._base = base
        self.ignored: set[str] = set()  # tensors that are the base model's own
        self.problems: list[str] = []

    def match(self) -> tuple[LoRAModule, ...]:
        """The changes, in the order of the model's targets."""
        found = [self._change(target) for target in self._targets]
        changes = tuple(change for change in found if change is not None)
        self.problems += [f"tensor {name} lands on no module of the model" for name in self._left]
        self.problems += _unserved_names(self._config, self._targets)
        if not changes and not self.problems:
            self.problems.append("no tensor lands on a module of the model")
        return changes

    def _change(self, target: TargetModule) -> LoRAModule | None:
        rows = self._take_rows(target)
        product = self._take_product(target)
        bias = self._take_bias(target)
        if product is None and bias is None and rows is None:
            return None
        scaling = self._config.scaling_of(target.name)
        if product is None:
            nothing = np.zeros((0, target.in_features), np.float32), np.zeros((target.out_features, 0), np.float32)
            return LoRAModule(target, scaling, *nothing, shift=self._shift(target, bias, None, None), rows=rows)
        if rows is not None:
            self.problems.append(f"{target.name} has trained rows and LoRA at once")
        if target.kind is not TargetKind.LINEAR and self._config.invocation_tokens:
            self.problems.append(f"target_modules: {target.name} of an activated LoRA is not served")
        a, b, *vector = product
        gain = self._gain(target, scaling, a, b, vector[0]) if self._config.use_dora else None
        bias_of_b = scaling * vector[0] if self._config.lora_bias else None
        return LoRAModule(target, scaling, a, b, self._shift(target, bias, bias_of_b, gain), gain)

    def _take_product(self, target: TargetModule) -> list[Array] | None:
        """A, B, and the vector that belongs to them: the bias of B or DoRA's magnitude."""
        rank, out = self._config.rank_of(target.name), target.out_features
        part_a, part_b = EMBEDDING_PARTS if target.kind is TargetKind.EMBEDDING else LINEAR_PARTS
        wanted: dict[str, tuple[int, ...]] = {part_a: (rank, target.in_features), part_b: (out, rank)}
        if self._config.lora_bias:
            wanted["lora_B.bias"] = (out,)
        if self._config.use_dora:
            wanted["lora_magnitude_vector"] = (out,)
        found = {part: self._left.pop(f"{PREFIX}{target.name}.{part}", None) for part in wanted}
        is_wanted = is_targeted(self._config, target)
        if not is_wanted and all(tensor is None for tensor in found.values()):
            return None
        if not is_wanted:  # PEFT would not have built it, and would leave its tensors out
            self.problems.append(f"{target.name} has tensors, but the configuration does not target it")
        tensors = [self._check(target, part, tensor, wanted[part]) for part, tensor in found.items()]
        fitting = [tensor for tensor in tensors if tensor is not None]
        return fitting if len(fitting) == len(wanted) else None

    def _take_bias(self, target: TargetModule) -> Array | None:
        """The module's own bias, trained. PEFT names it by the module, or by what it has wrapped."""
        is_lora = self._config.bias == "lora_only" and is_targeted(self._config, target)
        if not target.has_bias or not (self._config.bias == "all" or is_lora):
            return None
        part = "base_layer.bias" if f"{PREFIX}{target.name}.base_layer.bias" in self._left else "bias"
        return self._check(target, part, self._left.pop(f"{PREFIX}{target.name}.{part}", None), (target.out_features,))

    def _take_rows(self, target: TargetModule) -> TrainedRows | None:
        """Trained rows of a table: all of them (modules_to_save) or some (trainable_token_indices)."""
        if target.kind is TargetKind.LINEAR:
            return None
        name, shape = f"{PREFIX}{target.name}.weight", table_shape(target)
        if self._is_saved(target):
            table = self._check(target, "weight", self._left.pop(name, None), shape)
            return None if table is None else TrainedRows((), table)
        for table_name in (name, f"{PREFIX}{target.name}.base_layer.weight"):
            self._leave_out(table_name, target)
        source, ids = self._trained_tokens(target)
        if not ids:
            return None
        rows = self._tensors.get(f"{PREFIX}{source}.{TOKENS_PART}")
        self._left.pop(f"{PREFIX}{target.name}.{TOKENS_PART}", None)
        rows = self._check(target, TOKENS_PART, rows, (len(ids), shape[1]))
        if max(ids) >= shape[0]:
            self.problems.append(f"trainable_token_indices: {max(ids)} is none of the model's {shape[0]} tokens")
        if rows is None:
            return None
        order = np.argsort(ids)
        return TrainedRows(tuple(ids[i] for i in order), rows[order])

    def _is_saved(self, target: TargetModule) -> bool:
        is_tied = self._config.ensure_weight_tying and target.tied_to is not None
        return self._config.saves(target.name) or (is_tied and self._config.saves(str(target.tied_to)))

    def _trained_tokens(self, target: TargetModule) -> tuple[str, tuple[int, ...]]:
        """Whose rows stand for the target's, and which: PEFT saves those of tied tables once."""
        own = self._config.tokens_of(target.name)
        tied_to = target.tied_to
        if tied_to is None or f"{PREFIX}{target.name}.{TOKENS_PART}" in self._tensors:
            return target.name, own
        tied = self._config.tokens_of(tied_to)
        return (tied_to, tied) if not own or own == tied else (target.name, own)

    def _leave_out(self, name: str, target: TargetModule) -> None:
        """PEFT saves the base model's table beside LoRA on it; one that was trained unsaid would be lost."""
        table = self._left.pop(name, None)
        if table is None:
            return
        shape = table_shape(target)
        if table.shape != shape:
            self.problems.append(
                f"{name} has shape {list(table.shape)}, the model's is {list(shape)}: added tokens are not served"
            )
            return
        base = self._base_tensor(_weight_name(target), shape)
        if base is not None and not _is_same_table(table, base):
            self.problems.append(f"{name} differs from the base model's, and modules_to_save does not name it")
        self.ignored.add(name)

    def _check(self, target: TargetModule, part: str, tensor: Array | None, shape: tuple[int, ...]) -> Array | None:
        short = f"{target.name}.{part.removesuffix('.weight')}"
        if tensor is None:
            self.problems.append(f"tensor {PREFIX}{target.name}.{part} is missing")
        elif tensor.shape != shape:
            self.problems.append(f"{short} has shape {list(tensor.shape)}; model and rank ask for {list(shape)}")
        elif not (np.abs(tensor) <= MAX_VALUE).all():
            self.problems.append(f"{short} holds values that are not finite or beyond {MAX_VALUE:g}")
        else:
            return tensor
        return None

    def _gain(self, target: TargetModule, scaling: float, a: Array, b: Array, magnitude: Array) -> Array | None:
        is_embedding = target.kind is TargetKind.EMBEDDING
        shape = table_shape(target) if is_embedding else (target.out_features, target.in_features)
        weight = self._base_tensor(_weight_name(target), shape)
        if weight is None:
            return None
        gain = dora_gain(weight.T if is_embedding else weight, magnitude, scaling, a, b)
        if not (np.abs(gain) <= MAX_VALUE).all():
            self.problems.append(f"{target.name}.lora_magnitude_vector: a row of the weight is zero or nearly so")
        return gain

    def _shift(
        self, target: TargetModule, bias: Array | None, bias_of_b: Array | None, gain: Array | None
    ) -> Array | None:
        """What remains to be added: see lora_module.py, whose gain is on the base's bias too."""
        if bias is None and bias_of_b is None and (gain is None or not target.has_bias):
            return None
        shift = np.zeros(target.out_features, np.float32)
        if bias_of_b is not None:
            shift += bias_of_b
        if bias is None and gain is None:
            return shift
        own = self._base_tensor(f"{target.name}.bias", (target.out_features,)) if target.has_bias else None
        if own is not None:
            shift += (own if bias is None else bias) - (own if gain is None else gain * own)
        return shift

    def _base_tensor(self, name: str, shape: tuple[int, ...]) -> Array | None:
        problem = "is not at hand"
        if self._base is not None:
            try:
                tensor = self._base.get(name)
                if tensor.shape == shape:
                    return tensor
                problem = f"has shape {list(tensor.shape)}, not {list(shape)}"
            except OSError as error:
                problem = f"cannot be read: {error}"
        self.problems.append(f"{name} of the base model, which this adapter builds on, {problem}")
        return None


def is_targeted(config: PeftConfig, target: TargetModule) -> bool:
    """Whether PEFT would have put LoRA on the module."""
    if target.kind is not TargetKind.LINEAR and config.target_modules == "all-linear":
        return False
    is_tied = config.ensure_weight_tying and target.tied_to is not None
    return config.targets(target.name) or (is_tied and config.targets(str(target.tied_to)))


def table_shape(target: TargetModule) -> tuple[int, int]:
    """Of an embedding or a head: [vocabulary, hidden_size]."""
    shape = (target.in_features, target.out_features)
    return shape if target.kind is TargetKind.EMBEDDING else (shape[1], shape[0])


def _weight_name(target: TargetModule) -> str:
    return f"{target.tied_to or target.name}.weight"


def _is_same_table(table: Array, base: Array) -> bool:
    """Whether it is the base model's, in its type or in a half-precision one that the adapter was saved in."""
    if np.array_equal(table, base):
        return True
    bits = np.ascontiguousarray(base).view(np.uint32)
    bfloat16 = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    with np.errstate(over="ignore"):
        float16 = base.astype(np.float16).astype(np.float32)
    return np.array_equal(table, bfloat16) or np.array_equal(table, float16)


def _unserved_names(config: PeftConfig, targets: Sequence[TargetModule]) -> Iterator[str]:
    """What the configuration trains beside LoRA on linear modules, and the model does not have or we do not serve."""
    tables = [target.name for target in targets if target.kind is not TargetKind.LINEAR]
    named = {"modules_to_save": config.modules_to_save, "trainable_token_indices": tuple(config.trained_tokens)}
    for field, names in named.items():
        for name in names:
            if not any(table.endswith(name) for table in tables):
                yield f"{field}: {name!r} is not served, of {', '.join(tables) or 'no table'}"
    if isinstance(config.target_modules, tuple):
        for name in config.target_modules:
            tail = name.rpartition(".")[2]
            if tail in ("lm_head", "embed_tokens") and not any(table.endswith(tail) for table in tables):
                yield f"target_modules: LoRA on {name} is not served"


def warnings_of(config: PeftConfig, changes: Sequence[LoRAModule], targets: Sequence[TargetModule]) -> tuple[str, ...]:
    warnings = []
    if all(change.is_zero for change in changes):
        warnings.append("the adapter's change is zero: its answers are the base model's")
    if isinstance(config.target_modules, tuple):
        for name in config.target_modules:
            if not any(target.name == name or target.name.endswith(f".{name}") for target in targets):
                warnings.append(f"target_modules names {name}, which is no module of this model")
    return tuple(warnings)
