"""Matcher: matches the tensors of a PEFT checkpoint with a model's modules strictly, and names every problem.

Every tensor has to land on a module of the model, with the right shape and finite values, and every module that the
configuration trains has to have its tensors. numpy only.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ..lora_module import Array, BaseTensors, LoRAModule, TrainedRows, dora_gain
from ..targets import TABLES, TargetKind, TargetModule
from .config import PeftConfig
from .misfits import Misfits
from .named_tensors import MAX_VALUE, NamedTensors
from .token_rows import TokenRows

LINEAR_PARTS = ("lora_A.weight", "lora_B.weight")
EMBEDDING_PARTS = ("lora_embedding_A", "lora_embedding_B")


class Matcher:
    """The tensors of one checkpoint, each taken by the module on which it lands. `misfits` has every one that does not
    fit, `problems` all other reasons for a refusal."""

    def __init__(
        self, tensors: dict[str, Array], config: PeftConfig, targets: Sequence[TargetModule], base: BaseTensors | None
    ) -> None:
        self._tensors = NamedTensors(tensors, base)
        self._config = config
        self._targets = targets
        self._token_rows = TokenRows(self._tensors, config, targets)

    @property
    def misfits(self) -> Misfits:
        return self._tensors.misfits

    @property
    def problems(self) -> list[str]:
        return self._tensors.problems

    @property
    def ignored(self) -> set[str]:
        """Names of the tensors that are the base model's own."""
        return self._tensors.ignored

    @property
    def refused(self) -> set[str]:
        """Names of the tensors that do not fit."""
        return self._tensors.refused

    @property
    def vocab_size(self) -> int | None:
        """The adapter's own, where its tables are longer or shorter than the model's."""
        return self._token_rows.own_size

    def match(self) -> tuple[LoRAModule, ...]:
        """Returns the changes, in the order of the model's targets."""
        found = [self._change(target) for target in self._targets]
        changes = tuple(change for change in found if change is not None)
        self._tensors.refuse_left()
        self.problems.extend(_unserved_names(self._config, self._targets))
        if not changes and not self.problems and not self.misfits:
            self.problems.append("no tensor lands on a module of the model")
        return changes

    def _change(self, target: TargetModule) -> LoRAModule | None:
        if target.kind is TargetKind.NORM:
            return self._trained_norm(target)
        if target.kind is TargetKind.LINEAR:
            return self._change_of(target, None)
        resized = self._token_rows.resized(target)
        change = self._change_of(resized, self._token_rows.take_rows(resized))
        return None if change is None else self._token_rows.fit(change, target)

    def _trained_norm(self, target: TargetModule) -> LoRAModule | None:
        """Returns the norm that was trained as a whole: its weight replaces the model's."""
        if not self._config.saves(target.name):
            return None
        self._tensors.ignore(target.name, "original_module.weight")
        name, shape = f"{target.name}.weight", (target.out_features,)
        weight = self._tensors.check(target.name, "weight", self._tensors.take(target.name, "weight"), shape)
        if weight is None:
            return None
        base = self._tensors.base_if_known(name, shape)
        rows = TrainedRows((), weight[None], None if base is None else float(np.linalg.norm(weight - base)))
        return LoRAModule(target, 1.0, *_no_product(target), rows=rows)

    def _change_of(self, target: TargetModule, rows: TrainedRows | None) -> LoRAModule | None:
        product = self._take_product(target)
        bias = self._take_bias(target)
        if product is None and bias is None and rows is None:
            return None
        scaling = self._config.scaling_of(target.name)
        if product is None:
            return LoRAModule(
                target, scaling, *_no_product(target), shift=self._shift(target, bias, None, None), rows=rows
            )
        if rows is not None and self._token_rows.are_trained(rows):
            self.problems.append(f"{target.name} has trained rows and LoRA at once, which is not served")
            return None
        if target.kind is not TargetKind.LINEAR and self._config.invocation_tokens:
            self.problems.append(f"target_modules: {target.name} of an activated LoRA is not served")
        a, b, *vector = product
        gain = self._gain(target, scaling, a, b, vector[0], rows) if self._config.use_dora else None
        bias_of_b = scaling * vector[0] if self._config.lora_bias else None
        return LoRAModule(target, scaling, a, b, self._shift(target, bias, bias_of_b, gain), gain, rows)

    def _take_product(self, target: TargetModule) -> list[Array] | None:
        """Returns A, B, and the vector that belongs to them: the bias of B or DoRA's magnitude."""
        rank, out = self._config.rank_of(target.name), target.out_features
        part_a, part_b = EMBEDDING_PARTS if target.kind is TargetKind.EMBEDDING else LINEAR_PARTS
        wanted: dict[str, tuple[int, ...]] = {part_a: (rank, target.in_features), part_b: (out, rank)}
        if self._config.lora_bias:
            wanted["lora_B.bias"] = (out,)
        if self._config.use_dora:
            wanted["lora_magnitude_vector"] = (out,)
        found = {part: self._tensors.take(target.name, part) for part in wanted}
        is_wanted = is_targeted(self._config, target)
        if not is_wanted and all(tensor is None for tensor in found.values()):
            return None
        if not is_wanted:  # PEFT would not build LoRA here, and would leave the tensors out
            self.misfits.untargeted.append(target.name)
        tensors = [self._tensors.check(target.name, part, tensor, wanted[part]) for part, tensor in found.items()]
        fitting = [tensor for tensor in tensors if tensor is not None]
        return fitting if len(fitting) == len(wanted) else None

    def _take_bias(self, target: TargetModule) -> Array | None:
        """Returns the module's own trained bias. PEFT names it by the module, or by the layer that it has wrapped."""
        is_lora = self._config.bias == "lora_only" and is_targeted(self._config, target)
        if not target.has_bias or not (self._config.bias == "all" or is_lora):
            return None
        part = "bias" if self._tensors.find(target.name, "base_layer.bias") is None else "base_layer.bias"
        bias = self._tensors.take(target.name, part)
        return self._tensors.check(target.name, part, bias, (target.out_features,))

    def _gain(
        self, target: TargetModule, scaling: float, a: Array, b: Array, magnitude: Array, added: TrainedRows | None
    ) -> Array | None:
        is_embedding = target.kind is TargetKind.EMBEDDING
        if target.kind is TargetKind.LINEAR:
            weight = self._tensors.base(f"{target.name}.weight", (target.out_features, target.in_features))
        else:
            weight = self._token_rows.base_weight(target, added)
        if weight is None:
            return None
        gain = dora_gain(weight.T if is_embedding else weight, magnitude, scaling, a, b)
        if not (np.abs(gain) <= MAX_VALUE).all():
            self.problems.append(f"{target.name}.lora_magnitude_vector: a row of the weight is zero or nearly so")
        return gain

    def _shift(
        self, target: TargetModule, bias: Array | None, bias_of_b: Array | None, gain: Array | None
    ) -> Array | None:
        """Returns the shift of lora_module.py, where the gain applies to the base model's bias, too."""
        if bias is None and bias_of_b is None and (gain is None or not target.has_bias):
            return None
        shift = np.zeros(target.out_features, np.float32)
        if bias_of_b is not None:
            shift += bias_of_b
        if bias is None and gain is None:
            return shift
        own = self._tensors.base(f"{target.name}.bias", (target.out_features,)) if target.has_bias else None
        if own is not None:
            shift += (own if bias is None else bias) - (own if gain is None else gain * own)
        return shift


def _no_product(target: TargetModule) -> tuple[Array, Array]:
    """Returns A and B of rank 0."""
    return np.zeros((0, target.in_features), np.float32), np.zeros((target.out_features, 0), np.float32)


def is_targeted(config: PeftConfig, target: TargetModule) -> bool:
    """Returns whether PEFT would have put LoRA on the module."""
    if target.kind is TargetKind.NORM or (target.kind in TABLES and config.target_modules == "all-linear"):
        return False
    is_tied = config.ensure_weight_tying and target.tied_to is not None
    return config.targets(target.name) or (is_tied and config.targets(str(target.tied_to)))


def _unserved_names(config: PeftConfig, targets: Sequence[TargetModule]) -> Iterator[str]:
    """Yields a problem for each name that the configuration trains beside LoRA on linear modules, and that the model
    does not have or that is not served."""
    tables = [target.name for target in targets if target.kind in TABLES]
    norms = [target.name for target in targets if target.kind is TargetKind.NORM]
    served = f"{', '.join(tables) or 'none'}{', and its norms' if norms else ''}"
    for name in config.modules_to_save:
        if not any(module.endswith(name) for module in (*tables, *norms)):
            yield f"modules_to_save: {name!r} is not served; modules of this model that are: {served}"
    for name in config.trained_tokens:
        if not any(table.endswith(name) for table in tables):
            yield f"trainable_token_indices: {name!r} is no table of this model: {', '.join(tables) or 'it has none'}"
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
