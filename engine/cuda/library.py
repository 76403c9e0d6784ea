"""Loads FlashInfer and Triton when the CUDA backend is chosen, or raises an error that says what is missing."""

import importlib
import importlib.util
import shutil
from typing import Any

from ..errors import EngineStartError

INSTALL = "in a checkout of blora, run: pip install '.[cuda]'"
COMPILED = "flashinfer_jit_cache"  # a package of FlashInfer's compiled kernels


def load_flashinfer() -> Any:
    """Returns the module flashinfer. Raises EngineStartError that says what to install."""
    _load("triton")  # for the LoRA kernels
    flashinfer = _load("flashinfer")
    _check_tools()
    return flashinfer


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineStartError(f"backend: cuda needs {name}, but {error}; {INSTALL}") from error
    except (OSError, RuntimeError) as error:  # a home folder without write access, packages of different versions
        raise EngineStartError(f"backend: cuda needs {name}, which cannot be imported: {error}") from error


def _check_tools() -> None:
    """Raises EngineStartError if ninja is missing. FlashInfer runs it for every kernel, even for compiled ones."""
    if shutil.which("ninja") is None and importlib.util.find_spec(COMPILED) is None:
        raise EngineStartError(
            "backend: FlashInfer compiles its kernels with ninja, which is not on PATH: "
            "activate the environment that blora is installed in"
        )
