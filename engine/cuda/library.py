"""FlashInfer and Triton: loads them when the CUDA backend is chosen, or says what stands in the way."""

import importlib
import importlib.util
import shutil
from typing import Any

from ..errors import EngineStartError

INSTALL = "in a checkout of blora, run: pip install '.[cuda]'"
COMPILED = "flashinfer_jit_cache"  # a package of FlashInfer's kernels as they are compiled


def load_flashinfer() -> Any:
    """The module. Raises EngineStartError that says what to install."""
    _load("triton")  # of the LoRA kernels
    flashinfer = _load("flashinfer")
    _check_tools()
    return flashinfer


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineStartError(f"backend: cuda needs {name}, but {error}; {INSTALL}") from error
    except (OSError, RuntimeError) as error:  # a home that cannot be written to, packages of different versions
        raise EngineStartError(f"backend: cuda needs {name}, which cannot be imported: {error}") from error


def _check_tools() -> None:
    """FlashInfer runs ninja for every kernel, also for those that it has compiled before."""
    if shutil.which("ninja") is None and importlib.util.find_spec(COMPILED) is None:
        raise EngineStartError(
            "backend: FlashInfer compiles its kernels with ninja, which is not on PATH: "
            "activate the environment that blora is installed in"
        )
