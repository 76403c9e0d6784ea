"""TokenRows: the rows of the embedding and of the head that a checkpoint trains, or adds for new tokens. numpy only.

A matrix here is a whole embedding or head, [vocabulary, hidden_size], a row for each token. PEFT saves both matrices,
trained or not, when the vocabulary was resized. The base model's rows in them are left out; the rows of added tokens
are the adapter's own. An adapter's vocabulary is as long as its matrices.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..lora_module import Array, LoRAModule, TrainedRows
from ..targets import TABLES, TargetKind, TargetModule
from .config import PeftConfig
from .named_tensors import MAX_VALUE, NamedTensors
from .text import MAX_ADDED_TOKENS
from .trained_names import PREFIX

TOKENS_PART = "token_adapter.trainable_tokens_delta"  # whole rows, not deltas, whatever the name says
# The names under which PEFT writes an untrained matrix; they depend on the wrapper around the module.
BASE_PARTS = ("weight", "base_layer.weight", "original_module.weight", "token_adapter.base_layer.weight")
# Copies that PEFT writes beside a resized matrix and never reads again.
COPIES = ("modules_to_save.weight", "token_adapter.trainable_tokens_original")


class TokenRows:
    def __init__(self, tensors: NamedTensors, config: PeftConfig, targets: Sequence[TargetModule]) -> None:
        self._tensors = tensors
        self._config = config
        self._targets = [target for target in targets if target.kind in TABLES]
        self._model_size = matrix_shape(self._targets[0])[0] if self._targets else 0
        self.size = self._find_size()  # tokens

    @property
    def own_size(self) -> int | None:
        """The adapter's vocabulary size, or None where it is the model's."""
        return None if self.size == self._model_size else self.size

    def _find_size(self) -> int:
        matrices = {
            f"{target.name}.{part}": len(matrix)
            for target in self._targets
            for part in BASE_PARTS
            if (matrix := self._tensors.find(target.name, part)) is not None and matrix.ndim
        }
        trained = [token_id for target in self._targets for token_id in self._config.tokens_of(target.name)]
        size = next(iter(matrices.values()), max([self._model_size - 1, *trained]) + 1)
        problem = None
        if any(length != size for length in matrices.values()):
            problem = f"the embedding and the head have different numbers of rows: {matrices}"
        elif size - self._model_size > MAX_ADDED_TOKENS:
            added = f"{size - self._model_size} tokens are added to the model's {self._model_size}"
            problem = f"{added}, at most {MAX_ADDED_TOKENS} are taken"
        elif size != self._model_size and self._config.invocation_tokens:
            problem = f"an activated LoRA with {size} tokens is not served: its base rows have the model's vocabulary"
        if problem is None:
            return size
        self._tensors.problems.append(problem)
        return self._model_size

    def resized(self, target: TargetModule) -> TargetModule:
        """The target with the shape that its matrix had in training."""
        if target.kind is TargetKind.EMBEDDING:
            return replace(target, in_features=self.size)
        return replace(target, out_features=self.size)

    def take_rows(self, target: TargetModule) -> TrainedRows | None:
        """The rows of a resized matrix that replace the model's or follow them: every row (modules_to_save), trained
        rows (trainable_token_indices), and rows of added tokens. LoRA's change is not in them yet."""
        rows = self._take_rows(target)
        return None if rows is None else replace(rows, norm=self._change_norm(target, rows))

    def _change_norm(self, target: TargetModule, rows: TrainedRows) -> float | None:
        """The Frobenius norm of the rows' difference from the model's; an added row differs by itself."""
        base = self._tensors.base_if_known(self._weight_name(target), (self._model_size, matrix_shape(target)[1]))
        if base is None:
            return None
        ids = np.array(rows.ids or range(len(rows.rows)))
        is_added = ids >= len(base)
        square = np.sum(rows.rows[is_added] ** 2, dtype=np.float64)
        return float(np.sqrt(square + np.sum((rows.rows[~is_added] - base[ids[~is_added]]) ** 2, dtype=np.float64)))

    def _take_rows(self, target: TargetModule) -> TrainedRows | None:
        for part in COPIES:
            self._tensors.ignore(target.name, part)
        if self._is_saved(target):
            matrix = self._tensors.take(target.name, "weight")
            self._tensors.ignore(target.name, "original_module.weight")
            matrix = self._tensors.check(target.name, "weight", matrix, matrix_shape(target))
            return None if matrix is None else TrainedRows((), matrix)
        for part in BASE_PARTS:
            self._leave_out(target, part)
        trained = self._take_trained_tokens(target)
        return trained if self.size <= self._model_size else self._with_added(target, trained)

    def are_trained(self, rows: TrainedRows) -> bool:
        """Whether a row belongs to one of the model's own tokens."""
        return not rows.ids or rows.ids[0] < self._model_size

    def _take_trained_tokens(self, target: TargetModule) -> TrainedRows | None:
        source, ids = self._trained_tokens(target)
        if not ids:
            return None
        rows = self._tensors.find(source, TOKENS_PART)
        self._tensors.take(target.name, TOKENS_PART)
        rows = self._tensors.check(target.name, TOKENS_PART, rows, (len(ids), matrix_shape(target)[1]))
        if max(ids) >= self.size:
            self._tensors.problems.append(f"trainable_token_indices: {max(ids)} is none of {self.size} tokens")
        if rows is None:
            return None
        order = np.argsort(ids)
        return TrainedRows(tuple(ids[i] for i in order), rows[order])

    def _is_saved(self, target: TargetModule) -> bool:
        is_tied = self._config.ensure_weight_tying and target.tied_to is not None
        return self._config.saves(target.name) or (is_tied and self._config.saves(str(target.tied_to)))

    def _trained_tokens(self, target: TargetModule) -> tuple[str, tuple[int, ...]]:
        """The module that the target's trained rows are saved under, and their token ids. PEFT saves tied rows once."""
        own = self._config.tokens_of(target.name)
        tied_to = target.tied_to
        if tied_to is None or (own and self._tensors.find(target.name, TOKENS_PART) is not None):
            return target.name, own
        tied = self._config.tokens_of(tied_to)
        return (tied_to, tied) if not own or own == tied else (target.name, own)

    def _leave_out(self, target: TargetModule, part: str) -> None:
        """Leaves out a matrix that is the base model's. A different matrix is refused: it was trained although the
        configuration does not say so, and leaving it out would lose the training."""
        matrix, name = self._tensors.take(target.name, part), f"{PREFIX}{target.name}.{part}"
        shape = matrix_shape(target)
        if matrix is None:
            return
        if matrix.shape != shape:
            self._tensors.problems.append(f"{name} has shape {list(matrix.shape)}, the model's is {list(shape)}")
            self._tensors.refused.add(name)
            return
        base = self._base(target)
        if base is not None and not _is_same_matrix(matrix[: self._model_size], base[: self.size]):
            self._tensors.problems.append(f"{name} differs from the base model's, and modules_to_save does not name it")
            self._tensors.refused.add(name)
            return
        if self.size <= self._model_size:
            self._tensors.ignored.add(name)

    def _with_added(self, target: TargetModule, trained: TrainedRows | None) -> TrainedRows:
        """Trained rows and rows of added tokens; an added row may be a trained one."""
        first, (_, width) = self._model_size, matrix_shape(target)
        added = np.full((self.size - first, width), np.nan, np.float32)
        matrix = self._base_matrix(target)
        if matrix is not None and matrix.shape == matrix_shape(target):
            added[:] = matrix[first:]
        old = 0 if trained is None else sum(token_id < first for token_id in trained.ids)
        if trained is not None and trained.ids[-1] < self.size:
            added[np.array(trained.ids[old:], int) - first] = trained.rows[old:]
        if not (np.abs(added) <= MAX_VALUE).all():
            missing = f"rows of the added tokens {first} to {self.size - 1} are missing or not finite"
            self._tensors.problems.append(f"{target.name}: {missing}; save_embedding_layers=True saves them")
        ids = tuple(range(first, self.size))
        return (
            TrainedRows(ids, added)
            if trained is None
            else TrainedRows(trained.ids[:old] + ids, np.concatenate((trained.rows[:old], added)))
        )

    def _base_matrix(self, target: TargetModule) -> Array | None:
        """The untrained matrix in the checkpoint. Tied matrices may be saved once, under either name."""
        tied = [other.name for other in self._targets if target.name == other.tied_to or other.name == target.tied_to]
        matrices = (
            self._tensors.find(name, part)
            for name in (target.name, *tied)
            for part in BASE_PARTS
            if part != "weight" or not self._config.saves(name)
        )
        return next((matrix for matrix in matrices if matrix is not None), None)

    def _base(self, target: TargetModule) -> Array | None:
        """The model's own matrix: [its vocabulary, hidden_size]."""
        return self._tensors.base(self._weight_name(target), (self._model_size, matrix_shape(target)[1]))

    def _weight_name(self, target: TargetModule) -> str:
        return f"{target.tied_to or target.name}.weight"

    def base_weight(self, target: TargetModule, added: TrainedRows | None) -> Array | None:
        """The untrained matrix, resized as it was in training: [size, hidden_size]."""
        base = self._base(target)
        if base is None or added is None:
            return None if base is None else base[: self.size]
        return np.concatenate((base, added.rows))

    def fit(self, change: LoRAModule, target: TargetModule) -> LoRAModule:
        """Turns the change of a resized matrix into one of the model's: the changed rows of added tokens become whole
        rows."""
        if self.own_size is None:
            return change
        size, is_embedding, rows = self._model_size, target.kind is TargetKind.EMBEDDING, change.rows
        if rows is not None and change.rank:
            if change.shift is not None:
                self._tensors.problems.append(f"{target.name}: lora_bias together with added tokens is not served")
            rows = replace(rows, rows=_changed_rows(change, rows, is_embedding))
        return replace(
            change,
            target=target,
            a=_resize(change.a, size, axis=1) if is_embedding else change.a,
            b=change.b if is_embedding else _resize(change.b, size),
            gain=change.gain if change.gain is None or is_embedding else _resize(change.gain, size),
            shift=change.shift if change.shift is None or is_embedding else _resize(change.shift, size),
            rows=rows,
        )


def _changed_rows(change: LoRAModule, rows: TrainedRows, is_embedding: bool) -> Array:
    """The rows with LoRA's change in them."""
    ids = np.array(rows.ids)
    product = (change.b @ change.a[:, ids]).T if is_embedding else change.b[ids] @ change.a
    changed: Array = rows.rows + change.scaling * product
    if change.gain is not None:
        changed *= change.gain if is_embedding else change.gain[ids, None]
    return changed


def _resize(array: Array, size: int, axis: int = 0) -> Array:
    """The array cut to `size`, or padded with zeros: the padding belongs to no token."""
    kept = np.take(array, range(min(size, array.shape[axis])), axis)
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, size - kept.shape[axis])
    return np.pad(kept, padding)


def matrix_shape(target: TargetModule) -> tuple[int, int]:
    """The shape of an embedding or a head: (vocabulary, hidden_size)."""
    shape = (target.in_features, target.out_features)
    return shape if target.kind is TargetKind.EMBEDDING else (shape[1], shape[0])


def _is_same_matrix(matrix: Array, base: Array) -> bool:
    """Whether a matrix is the base model's, in float32 or rounded to a half precision, in which adapters are saved."""
    if np.array_equal(matrix, base):
        return True
    bits = np.ascontiguousarray(base).view(np.uint32)
    bfloat16 = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    with np.errstate(over="ignore"):
        float16 = base.astype(np.float16).astype(np.float32)
    return np.array_equal(matrix, bfloat16) or np.array_equal(matrix, float16)
