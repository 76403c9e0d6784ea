"""The instruction sets of the native kernels' builds, and those that this machine runs. Imports no torch."""

from pathlib import Path

AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
# The best first, the one that runs everywhere last; each with the flags of /proc/cpuinfo that it needs.
INSTRUCTION_SETS = {
    "amx": {*AVX512, "avx512_bf16", "amx_tile", "amx_bf16"},
    "avx512bf16": {*AVX512, "avx512_bf16"},
    "avx512": AVX512,
    "avx2": {"avx2", "fma"},
    "base": set[str](),
}


def instruction_sets() -> list[str]:
    """The instruction sets that this machine runs, the best first."""
    flags = _cpu_flags()
    return [name for name, needed in INSTRUCTION_SETS.items() if needed <= flags]


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
