"""Triton's interpreter puts its own functions in the place of the language's before a kernel runs, and looks for them
anew in each function that the kernel calls: that took several times as long as the kernels."""

from typing import Any

import triton.language as tl
from triton.runtime import interpreter

replace_language = interpreter._patch_lang


def replace_once(function: Any) -> Any:
    """Nothing where all is replaced that the function sees. What this returns puts back what it has replaced."""
    modules = [module for module in (tl, tl.core) if module in function.__globals__.values()]
    is_replaced = modules and not any(tl.core.is_builtin(module.load) for module in modules)
    return interpreter._LangPatchScope() if is_replaced else replace_language(function)


def install() -> None:
    interpreter._patch_lang = replace_once
