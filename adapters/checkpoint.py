"""Checkpoint: a PEFT LoRA folder read once into private memory and checked against a model. numpy only, no torch.

Strict: every tensor must land on a module of the model with the right shape and finite values, and every module that
the configuration targets must have its tensors. What does not fit is refused with the whole list of problems.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors

from .adapter_text import AdapterText, TextError, encode_text, read_adapter_text
from .errors import AdapterRejected
from .peft_config import MAX_CONFIG_BYTES, ConfigError, PeftConfig, parse_config
from .targets import TargetModule

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_HEADER_BYTES = 1 << 20  # parsing a header takes time and memory in proportion; a real one has some 20 kB
MAX_VALUE = 65504.0  # of a weight: the largest float16, so that no model's type turns one into infinity
PREFIX = "base_model.model."

Array = np.ndarray  # of any dtype


@dataclass(frozen=True, slots=True)
class LoRAModule:
    """The change of one module: scaling * B @ A."""

    target: TargetModule
    scaling: float  # alpha / r, or alpha / sqrt(r)
    a: Array  # [rank, in_features] float32
    b: Array  # [out_features, rank] float32

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    path: str
    digest: str  # sha256 over both files, and over the text if there is any
    modules: tuple[LoRAModule, ...]  # in the order of the model's targets
    warnings: tuple[str, ...]
    invocation_tokens: tuple[int, ...] = ()  # of an activated LoRA
    kind: str = "LoRA"
    tensor_names: tuple[str, ...] = ()  # of the file, all of them applied
    num_bytes: int = 0  # of both files
    text: AdapterText = AdapterText()


def read_checkpoint(folder: Path, targets: Sequence[TargetModule], roots: Sequence[Path] | None = None) -> Checkpoint:
    """Reads and checks a PEFT folder. `roots`: folders that it must lie in, links followed; None allows any place.

    Raises AdapterRejected with everything that does not fit.
    """
    source = str(folder)
    try:
        config_bytes = _read_file(folder / CONFIG_FILE, MAX_CONFIG_BYTES, roots)
        config = parse_config(config_bytes)
        weights = _read_file(folder / WEIGHTS_FILE, _most_bytes(config, targets), roots)
        tensors = dict(_parse_safetensors(weights))
        text = read_adapter_text(partial(_read_optional, folder, roots))
    except ConfigError as error:
        raise AdapterRejected(source, error.problems) from error
    except (_Unreadable, TextError) as error:
        raise AdapterRejected(source, [str(error)]) from error
    modules, problems = _match(tensors, config, targets)
    if problems:
        raise AdapterRejected(source, problems)
    parts = [config_bytes, weights] if text.is_empty else [config_bytes, weights, encode_text(text)]
    return Checkpoint(
        path=source,
        digest=hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest(),
        modules=modules,
        warnings=_warnings(config, modules, targets),
        kind=config.kind,
        tensor_names=tuple(sorted(tensors)),
        num_bytes=len(config_bytes) + len(weights),
        invocation_tokens=config.invocation_tokens,
        text=text,
    )


def _most_bytes(config: PeftConfig, targets: Sequence[TargetModule]) -> int:
    """The size of a file that holds what the configuration targets, in float32: a larger one is not even read."""
    modules = (target for target in targets if config.targets(target.name))
    elements = sum(config.rank_of(module.name) * (module.in_features + module.out_features) for module in modules)
    return elements * 4 + MAX_HEADER_BYTES


class _Unreadable(Exception):
    """A file that is missing, not allowed, not regular, too large or malformed."""


def _read_file(path: Path, max_bytes: int, roots: Sequence[Path] | None) -> bytes:
    """The whole file, copied into private memory: nothing done to it later can change what was checked."""
    try:
        real = path.resolve()
        # Before it is looked at: whether a file outside exists is nobody's business.
        if roots is not None and not any(real.is_relative_to(root.resolve()) for root in roots):
            raise _Unreadable(f"{path.name} lies outside the allowed folders")
        with open(real, "rb", opener=_open_resolved) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise _Unreadable(f"{path.name} is not a regular file")
            if state.st_size > max_bytes:
                raise _Unreadable(f"{path.name} has {state.st_size} bytes, at most {max_bytes} are read")
            content = file.read(state.st_size + 1)  # allocates as much as it is asked for
    except (OSError, RuntimeError, ValueError) as error:
        raise _Unreadable(_missing(path, error)) from error
    if len(content) != state.st_size:
        raise _Unreadable(f"{path.name} changed while it was read")
    return content


def _read_optional(folder: Path, roots: Sequence[Path] | None, name: str, max_bytes: int) -> bytes | None:
    path = folder / name
    return _read_file(path, max_bytes, roots) if os.path.lexists(path) else None


def _open_resolved(path: str, flags: int) -> int:
    """Non-blocking, so that a FIFO cannot hang us; no link any more, because the path is resolved."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _missing(path: Path, error: Exception) -> str:
    if path.name == WEIGHTS_FILE and path.with_suffix(".bin").exists():
        return (
            f"{WEIGHTS_FILE} is missing; adapter_model.bin is a pickle and is never opened: convert it to safetensors"
        )
    reason = error.strerror if isinstance(error, OSError) else "not a usable path"
    return f"{path.name} cannot be read: {reason}"


def _parse_safetensors(content: bytes) -> Iterator[tuple[str, Array]]:
    """Name and values (float32) of every tensor."""
    header_bytes = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= header_bytes <= min(MAX_HEADER_BYTES, len(content) - 8):
        raise _Unreadable(f"{WEIGHTS_FILE} has no valid safetensors header of at most {MAX_HEADER_BYTES} bytes")
    try:
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise _Unreadable(f"{WEIGHTS_FILE} is not a valid safetensors file: {error}") from error
    for name, entry in entries:
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


def _match(
    tensors: dict[str, Array], config: PeftConfig, targets: Sequence[TargetModule]
) -> tuple[tuple[LoRAModule, ...], list[str]]:
    """The modules whose tensors fit, and what did not fit."""
    modules: list[LoRAModule] = []
    problems: list[str] = []
    left = dict(tensors)
    for target in targets:
        names = [f"{PREFIX}{target.name}.lora_{part}.weight" for part in "AB"]
        a, b = (left.pop(name, None) for name in names)
        if a is not None and b is not None:
            module = LoRAModule(target, config.scaling_of(target.name), a, b)
            problems += _misfits(module, config.rank_of(target.name))
            if not config.targets(target.name):  # PEFT would not have built it, and would leave its tensors out
                problems.append(f"{target.name} has tensors, but the configuration does not target it")
            modules.append(module)
        elif a is not None or b is not None or config.targets(target.name):
            missing = [name for name, tensor in zip(names, (a, b), strict=True) if tensor is None]
            problems += [f"tensor {name} is missing" for name in missing]
    problems += [f"tensor {name} lands on no module of the model" for name in left]
    problems += _unserved_targets(config)
    if not modules and not problems:
        problems.append("no tensor lands on a module of the model")
    return tuple(modules), problems


def _misfits(module: LoRAModule, rank: int) -> Iterator[str]:
    target = module.target
    wanted = ((rank, target.in_features), (target.out_features, rank))
    for part, tensor, shape in zip("AB", (module.a, module.b), wanted, strict=True):
        if tensor.shape != shape:
            yield f"{target.name}.lora_{part} has shape {list(tensor.shape)}; model and rank ask for {list(shape)}"
        elif not (np.abs(tensor) <= MAX_VALUE).all():
            yield f"{target.name}.lora_{part} holds values that are not finite or beyond {MAX_VALUE:g}"


def _unserved_targets(config: PeftConfig) -> Iterator[str]:
    """These exist in the model, so a configuration that names them means them."""
    if isinstance(config.target_modules, tuple):
        for name in config.target_modules:
            if name.rpartition(".")[2] in ("lm_head", "embed_tokens"):
                yield f"target_modules: LoRA on {name} is not served"


def _warnings(config: PeftConfig, modules: Sequence[LoRAModule], targets: Sequence[TargetModule]) -> tuple[str, ...]:
    warnings = []
    if all(not module.a.any() or not module.b.any() or not module.scaling for module in modules):
        warnings.append("the adapter's change is zero: its answers are the base model's")
    if isinstance(config.target_modules, tuple):
        for name in config.target_modules:
            if not any(target.name == name or target.name.endswith(f".{name}") for target in targets):
                warnings.append(f"target_modules names {name}, which is no module of this model")
    return tuple(warnings)
