"""`blora collect-env`: prints what a report of a bug needs: versions, processor, kernels, memory.

It tells no secret, no name of a user or a machine, and nothing of the environment.
"""

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    *(
        "blora",
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
        "grpcio",
        "protobuf",
        "msgspec",
        "jinja2",
    ),
    *("starlette", "uvicorn", "llguidance", "prometheus-client", "opentelemetry-sdk", "triton", "flashinfer-python"),
    *("peft", "gguf", "huggingface-hub"),
)
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16")


def run(_: argparse.Namespace) -> int:
    for name, value in facts():
        print(f"{name}: {value}")
    return 0


def facts() -> Iterator[tuple[str, str]]:
    yield from ((package, _version(package)) for package in PACKAGES)
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}, {sys.platform})"
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "libc", " ".join(platform.libc_ver())
    yield "processor", _first("/proc/cpuinfo", "model name") or platform.processor() or "unknown"
    yield "cores", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"
    yield "instructions", _instructions()
    yield "memory", f"{_first('/proc/meminfo', 'MemTotal')}, {_first('/proc/meminfo', 'MemAvailable')} available"
    yield "shared memory", _shared_memory()
    yield "kernels", _kernels()
    yield "devices", _devices()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _first(path: str, key: str) -> str:
    """The value of the first line with this key, or ""."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _instructions() -> str:
    flags = {*_first("/proc/cpuinfo", "flags").split(), *_first("/proc/cpuinfo", "Features").split()}
    return " ".join(name for name in FEATURES if name in flags) or "none of those that kernels use"


def _shared_memory() -> str:
    try:
        space = os.statvfs("/dev/shm")
    except OSError:
        return "no /dev/shm"
    return f"{space.f_bavail * space.f_frsize >> 20} MiB free"


def _kernels() -> str:
    """The builds that are installed, and the one that this machine runs."""
    import blora.engine.kernels as kernels

    builds = sorted(path.name for folder in kernels.__path__ for path in Path(folder).glob("*.so"))
    return ", ".join(builds) or "not built; torch computes in their place"


def _devices() -> str:
    found = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    return ", ".join(found) or "no GPU"
