"""Checkpoint: a PEFT LoRA folder read once into private memory and checked against a model. numpy only, no torch.

Owns the reading of the two files; `matching.py` decides whether their content fits the model. A folder that does not
fit is refused with the whole list of problems.
"""

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors

from ..errors import AdapterRejected, AdapterTooLarge
from ..lora_module import Array, BaseTensors, LoRAModule
from ..targets import TargetKind, TargetModule
from .config import MAX_CONFIG_BYTES, ConfigError, PeftConfig, parse_config
from .fingerprint import CONFIG_FILE, WEIGHTS_FILE, fingerprint
from .matching import Matcher, is_targeted, warnings_of
from .text import MAX_ADDED_TOKENS, AdapterText, TextError, encode_text, read_adapter_text
from .token_rows import matrix_shape

OUTPUT_VECTORS = 2  # of a module's outputs, at most: its bias, and DoRA's magnitude or the bias of B
MAX_HEADER_BYTES = 1 << 20  # parsing a header takes time and memory in proportion; a real one has some 20 kB
MAX_READS = 5  # of files that are overwritten meanwhile
PAUSE = 0.05  # seconds between two of them
TICK = 0.01  # seconds, at most, in which two writes may leave the same time on a file


@dataclass(frozen=True, slots=True)
class Checkpoint:
    path: str
    digest: str  # sha256 over both files, and over the text if there is any
    modules: tuple[LoRAModule, ...]  # in the order of the model's targets
    warnings: tuple[str, ...]
    invocation_tokens: tuple[int, ...] = ()  # of an activated LoRA
    kind: str = "LoRA"
    tensor_names: tuple[str, ...] = ()  # tensors in the file that are applied
    ignored_tensors: tuple[str, ...] = ()  # tables in the file that are the base model's
    refused_tensors: tuple[str, ...] = ()  # tensors in the file that do not fit; with any, do not use the checkpoint
    num_bytes: int = 0  # size of both files
    text: AdapterText = AdapterText()
    vocab_size: int | None = None  # the adapter's own, if its tables are longer or shorter than the model's
    fingerprint: str = ""  # taken before the files were read: while it stands, they have this content

    @property
    def is_exclusive(self) -> bool:
        """Whether the adapter cannot be scaled or summed with others: DoRA, rows of tables, a vocabulary of its own."""
        is_sum = all(module.gain is None and module.rows is None for module in self.modules)
        return not is_sum or self.vocab_size is not None


@dataclass(frozen=True, slots=True)
class Judgement:
    """The content of a folder, and all reasons for refusing it."""

    problems: tuple[str, ...]
    kind: str = ""
    checkpoint: Checkpoint | None = None  # as far as it could be read; whole if there is no problem


def read_checkpoint(
    folder: Path,
    targets: Sequence[TargetModule],
    roots: Sequence[Path] | None = None,
    base: BaseTensors | None = None,
    max_elements: int | None = None,
) -> Checkpoint:
    """Reads and checks a PEFT folder.

    roots: folders in one of which it has to lie after links are followed; None allows any place.
    base: the base model's tensors; without them, adapters that are defined by them (DoRA, trained biases) are refused.
    max_elements: most numbers in A and B of all modules together; None allows any number.

    Raises AdapterRejected with everything that does not fit, and AdapterTooLarge before weights are read.
    """
    judged = judge_checkpoint(folder, targets, roots, base, max_elements)
    if judged.problems or judged.checkpoint is None:
        raise AdapterRejected(str(folder), judged.problems)
    return judged.checkpoint


def judge_checkpoint(
    folder: Path,
    targets: Sequence[TargetModule],
    roots: Sequence[Path] | None = None,
    base: BaseTensors | None = None,
    max_elements: int | None = None,
) -> Judgement:
    """Reads as `read_checkpoint` does, but returns the problems, with everything that could be read. Raises
    AdapterTooLarge.

    A folder that is being overwritten is read again when its files have changed meanwhile.
    """
    for _ in range(MAX_READS - 1):
        before = fingerprint(folder)
        judged = _judge(folder, targets, roots, base, max_elements, before)
        if not judged.problems or fingerprint(folder) == before:
            return judged
        time.sleep(PAUSE)
    return _judge(folder, targets, roots, base, max_elements, fingerprint(folder))


def _judge(
    folder: Path,
    targets: Sequence[TargetModule],
    roots: Sequence[Path] | None,
    base: BaseTensors | None,
    max_elements: int | None,
    before: str,
) -> Judgement:
    """before: the fingerprint of the files."""
    kind = ""
    try:
        config_bytes = _read_file(folder / CONFIG_FILE, MAX_CONFIG_BYTES, roots)
        config = parse_config(config_bytes)
        kind = config.kind
        _check_size(config, targets, max_elements)
        weights = _read_file(folder / WEIGHTS_FILE, _most_bytes(config, targets), roots)
        tensors = dict(_parse_safetensors(weights))
        text = read_adapter_text(partial(_read_optional, folder, roots))
        if _read_file(folder / CONFIG_FILE, MAX_CONFIG_BYTES, roots) != config_bytes:  # and may go with other weights
            raise _changed(CONFIG_FILE)
        matcher = Matcher(tensors, config, targets, base)
        modules = matcher.match()
        warnings = warnings_of(config, modules, targets)
    except ConfigError as error:
        return Judgement(tuple(error.problems), kind)
    except (_Unreadable, TextError) as error:
        return Judgement((str(error),), kind)
    parts = [config_bytes, weights] if text.is_empty else [config_bytes, weights, encode_text(text)]
    checkpoint = Checkpoint(
        path=str(folder),
        digest=hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest(),
        modules=modules,
        warnings=warnings,
        kind=kind,
        tensor_names=tuple(sorted(tensors.keys() - matcher.ignored - matcher.refused)),
        ignored_tensors=tuple(sorted(matcher.ignored)),
        refused_tensors=tuple(sorted(matcher.refused)),
        num_bytes=len(config_bytes) + len(weights),
        invocation_tokens=config.invocation_tokens,
        text=text,
        vocab_size=matcher.vocab_size,
        fingerprint=before,
    )
    return Judgement(tuple(matcher.problems), kind, checkpoint)


def _check_size(config: PeftConfig, targets: Sequence[TargetModule], max_elements: int | None) -> None:
    num_elements = sum(
        config.rank_of(target.name) * (target.in_features + target.out_features)
        for target in targets
        if is_targeted(config, target)
    )
    if max_elements is not None and num_elements > max_elements:
        raise AdapterTooLarge(
            "the adapter is too large: "
            f"its ranks ask for {num_elements} weights, the engine's memory holds {max_elements}"
        )


def _most_bytes(config: PeftConfig, targets: Sequence[TargetModule]) -> int:
    """Returns the size of a float32 file of all tensors that the configuration targets. A larger file is not read."""
    elements = 0
    for target in targets:
        rank = config.rank_of(target.name) if is_targeted(config, target) else 0
        elements += rank * (target.in_features + target.out_features) + OUTPUT_VECTORS * target.out_features
        if target.kind is not TargetKind.LINEAR:  # its whole matrix: trained, the base model's, or both and a copy
            size, width = matrix_shape(target)
            num_matrices = 3 if config.modules_to_save else 1
            elements += num_matrices * (size + MAX_ADDED_TOKENS) * width + rank * MAX_ADDED_TOKENS
            elements += 2 * len(config.tokens_of(target.name)) * width
    return elements * 4 + MAX_HEADER_BYTES


class _Unreadable(Exception):
    """A file that is missing, not allowed, not regular, too large or malformed."""


def _read_file(path: Path, max_bytes: int, roots: Sequence[Path] | None) -> bytes:
    """Returns the whole file, copied into private memory: later changes of the file cannot change checked content."""
    try:
        real = path.resolve()
        # The place is checked before the file is touched, so that a client cannot learn which files exist outside, and
        # again after it is open, because meanwhile a folder of the path may have been replaced by a link.
        _require_inside(roots, path.name, real)
        with open(real, "rb", opener=_open_resolved) as file:
            _require_inside(roots, path.name, Path(f"/proc/self/fd/{file.fileno()}").readlink())
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise _Unreadable(f"{path.name} is not a regular file")
            if state.st_size > max_bytes:
                raise _Unreadable(f"{path.name} has {state.st_size} bytes, at most {max_bytes} are read")
            _let_tick_pass(state.st_mtime)
            content = file.read(state.st_size + 1)  # `read` allocates as many bytes as are requested
            is_same = os.fstat(file.fileno()).st_mtime_ns == state.st_mtime_ns  # else the content may mix two versions
    except (OSError, RuntimeError, ValueError) as error:
        raise _Unreadable(_missing(path, error)) from error
    if len(content) != state.st_size or not is_same:
        raise _changed(path.name)
    return content


def _changed(name: str) -> _Unreadable:
    return _Unreadable(f"{name} changed while it was read; load the adapter again when its files are whole")


def _let_tick_pass(last_write: float) -> None:
    """Waits until any further write to a file leaves another time on it. last_write: the time of the last one."""
    age = time.time() - last_write
    if 0 <= age < TICK:
        time.sleep(TICK - age)


def _require_inside(roots: Sequence[Path] | None, name: str, real: Path) -> None:
    if roots is not None and not any(real.is_relative_to(root.resolve()) for root in roots):
        raise _Unreadable(f"{name} lies outside the allowed folders")


def _read_optional(folder: Path, roots: Sequence[Path] | None, name: str, max_bytes: int) -> bytes | None:
    path = folder / name
    return _read_file(path, max_bytes, roots) if os.path.lexists(path) else None


def _open_resolved(path: str, flags: int) -> int:
    """Opens a file without blocking, so that a FIFO cannot hang the process, and without following links, because the
    path is resolved already."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _missing(path: Path, error: Exception) -> str:
    if path.name == WEIGHTS_FILE and path.with_suffix(".bin").exists():
        return (
            f"{WEIGHTS_FILE} is missing; adapter_model.bin is a pickle and is never opened: convert it to safetensors"
        )
    reason = error.strerror if isinstance(error, OSError) else "not a usable path"
    return f"{path.name} cannot be read: {reason}"


def _parse_safetensors(content: bytes) -> Iterator[tuple[str, Array]]:
    """Yields the name and the values (float32) of every tensor."""
    header_bytes = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= header_bytes <= min(MAX_HEADER_BYTES, len(content) - 8):
        raise _Unreadable(f"{WEIGHTS_FILE} has no valid safetensors header of at most {MAX_HEADER_BYTES} bytes")
    try:
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise _Unreadable(f"{WEIGHTS_FILE} is not a valid safetensors file: {error}") from error
    for name, entry in sorted(entries, key=lambda named: named[0]):  # safetensors returns them in a random order
        yield name, _as_float32(name, entry["dtype"], entry["data"]).reshape(entry["shape"])


def _as_float32(name: str, dtype: str, data: bytes) -> Array:
    match dtype:
        case "F32":
            return np.frombuffer(data, dtype="<f4")
        case "F16":
            return np.frombuffer(data, dtype="<f2").astype(np.float32)
        case "BF16":
            return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
        case _:
            raise _Unreadable(f"tensor {name} is of type {dtype}; F32, F16 and BF16 are served")
