"""Host: the machine, the versions and the commit of a measurement, without torch."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("blora", "grpcio", "aiohttp", "protobuf")


def describe_host() -> dict[str, Any]:
    """Returns plain data for JSON: {"machine": {...}, "versions": {...}, "commit": ...}."""
    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": sys.version.split()[0]} | {name: _version(name) for name in PACKAGES},
        "commit": commit(),
    }


def cpu_model() -> str:
    """Returns name, family and model number: the name in a virtual machine is often only the maker's."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name", platform.processor() or platform.machine())
    pairs = (("family", "cpu family"), ("model", "model"))
    numbers = [f"{label} {fields[field]}" for label, field in pairs if field in fields]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def commit() -> str | None:
    """The commit of a checkout of blora, with + where files are changed; None for an installed package."""
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
