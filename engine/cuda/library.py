"""FlashInfer and Triton: loads them when the CUDA backend is chosen, or says what stands in the way."""

import importlib
from typing import Any

from ..errors import EngineStartError

INSTALL = "install blora with its extra `cuda`: pip install 'blora[cuda]'"


def load_flashinfer() -> Any:
    """The module. Raises EngineStartError that says what to install."""
    _load("triton")  # of the LoRA kernels
    return _load("flashinfer")


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineStartError(f"backend: cuda needs {name}, but {error}; {INSTALL}") from error
