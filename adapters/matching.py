"""Matching the tensors of a PEFT checkpoint with a model's modules: strict, and with every problem named.

Every tensor must land on a module of the model with the right shape and finite values, and everything that the
configuration trains must have its tensors. numpy only.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from .base_tensors import BaseTensors
from .lora_module import Array, LoRAModule, dora_gain
from .peft_config import PeftConfig
from .targets import TargetModule

PREFIX = "base_model.model."
MAX_VALUE = 65504.0  # of a weight: the largest float16, so that no model's type turns one into infinity


class Matcher:
    """One checkpoint's tensors, taken by the modules they land on; `problems` says what did not fit."""

    def __init__(
        self, tensors: dict[str, Array], config: PeftConfig, targets: Sequence[TargetModule], base: BaseTensors | None
    ) -> None:
        self._left = dict(tensors)
        self._config = config
        self._targets = targets
        self._base = base
        self.problems: list[str] = []

    def match(self) -> tuple[LoRAModule, ...]:
        """The changes, in the order of the model's targets."""
        found = [self._change(target) for target in self._targets]
        changes = tuple(change for change in found if change is not None)
        self.problems += [f"tensor {name} lands on no module of the model" for name in self._left]
        self.problems += _unserved_targets(self._config)
        if not changes and not self.problems:
            self.problems.append("no tensor lands on a module of the model")
        return changes

    def _change(self, target: TargetModule) -> LoRAModule | None:
        product = self._take_product(target)
        bias = self._take_bias(target)
        if product is None and bias is None:
            return None
        scaling = self._config.scaling_of(target.name)
        if product is None:
            nothing = np.zeros((0, target.in_features), np.float32), np.zeros((target.out_features, 0), np.float32)
            return LoRAModule(target, scaling, *nothing, shift=self._shift(target, bias, None, None))
        a, b, *vector = product
        gain = self._gain(target, scaling, a, b, vector[0]) if self._config.use_dora else None
        bias_of_b = scaling * vector[0] if self._config.lora_bias else None
        return LoRAModule(target, scaling, a, b, self._shift(target, bias, bias_of_b, gain), gain)

    def _take_product(self, target: TargetModule) -> list[Array] | None:
        """A, B, and the vector that belongs to them: the bias of B or DoRA's magnitude."""
        rank, out = self._config.rank_of(target.name), target.out_features
        wanted: dict[str, tuple[int, ...]] = {
            "lora_A.weight": (rank, target.in_features),
            "lora_B.weight": (out, rank),
        }
        if self._config.lora_bias:
            wanted["lora_B.bias"] = (out,)
        if self._config.use_dora:
            wanted["lora_magnitude_vector"] = (out,)
        found = {part: self._left.pop(f"{PREFIX}{target.name}.{part}", None) for part in wanted}
        is_targeted = self._config.targets(target.name)
        if not is_targeted and all(tensor is None for tensor in found.values()):
            return None
        if not is_targeted:  # PEFT would not have built it, and would leave its tensors out
            self.problems.append(f"{target.name} has tensors, but the configuration does not target it")
        tensors = [self._check(target, part, tensor, wanted[part]) for part, tensor in found.items()]
        fitting = [tensor for tensor in tensors if tensor is not None]
        return fitting if len(fitting) == len(wanted) else None

    def _take_bias(self, target: TargetModule) -> Array | None:
        """The module's own bias, trained. PEFT names it by the module, or by what it has wrapped."""
        is_targeted = self._config.targets(target.name)
        is_trained = self._config.bias == "all" or (self._config.bias == "lora_only" and is_targeted)
        if not target.has_bias or not is_trained:
            return None
        part = "base_layer.bias" if f"{PREFIX}{target.name}.base_layer.bias" in self._left else "bias"
        return self._check(target, part, self._left.pop(f"{PREFIX}{target.name}.{part}", None), (target.out_features,))

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
        weight = self._base_tensor(f"{target.name}.weight", (target.out_features, target.in_features))
        if weight is None:
            return None
        gain = dora_gain(weight, magnitude, scaling, a, b)
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


def _unserved_targets(config: PeftConfig) -> Iterator[str]:
    """These exist in the model, so a configuration that names them means them."""
    if isinstance(config.target_modules, tuple):
        for name in config.target_modules:
            if name.rpartition(".")[2] in ("lm_head", "embed_tokens"):
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
