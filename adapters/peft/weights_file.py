"""Reads the tensors of safetensors files that strangers wrote. Knows no tensor's meaning. numpy only."""

from collections.abc import Iterator, Sequence

import numpy as np
import safetensors

from ..lora_module import Array
from .folder import Unreadable
from .foreign import kind_of_content

MAX_HEADER_BYTES = 1 << 20  # parsing a header takes time and memory in proportion; a real one has some 20 kB


def read_tensors(names: Sequence[str], contents: Sequence[bytes]) -> dict[str, Array]:
    """Returns the tensors of all files by name, in float32. names: of the files. Raises Unreadable."""
    tensors: dict[str, Array] = {}
    for file, content in zip(names, contents, strict=True):
        for name, tensor in _parse(file, content):
            if name in tensors:
                raise Unreadable(f"tensor {name} is in two files")
            tensors[name] = tensor
    return tensors


def _parse(file: str, content: bytes) -> Iterator[tuple[str, Array]]:
    header_bytes = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= header_bytes <= min(MAX_HEADER_BYTES, len(content) - 8):
        kind = kind_of_content(content)
        problem = f"{file} has no valid safetensors header of at most {MAX_HEADER_BYTES} bytes"
        raise Unreadable(problem if kind is None else f"{problem}: it is {kind}")
    try:
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise Unreadable(f"{file} is not a valid safetensors file: {error}") from error
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
            served = "F32, F16 and BF16 are served"
            raise Unreadable(f"tensor {name} is of type {dtype}; {served}: save the adapter in one of these types")
