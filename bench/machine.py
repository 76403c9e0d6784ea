"""Machine: describes the machine of a measurement, its kernels and the versions. Every result includes it."""

import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from blora.engine.cpu.backend import kernels_of

from .host import cpu_model

PACKAGES = ("blora", "torch", "numpy", "transformers", "tokenizers")


def describe(backend: str = "auto") -> dict[str, Any]:
    """Returns plain data for JSON: {"date": ..., "machine": {...}, "versions": {...}}. backend: the engine's option."""
    kernels = kernels_of(backend)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "instruction_set": None if kernels is None else kernels.instruction_set,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES},
    }


def summary(description: Mapping[str, Any]) -> str:
    """Returns one line of a description, for the head of a table."""
    machine, versions = description["machine"], description["versions"]
    kernels = machine["instruction_set"] or "no native"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {kernels} kernels, "
        f"torch {versions['torch']}, blora {versions['blora']}"
    )
