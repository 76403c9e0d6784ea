"""Resources of the compiled Triton kernels: registers, shared memory and spills. It needs none of the GPUs.

It compiles each shipped configuration for each architecture and type as TritonLoRA launches it, down to machine code.
ptxas reports the resources. A spill is an error.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from .table import Cell, format_table, write_json

ARCHITECTURES = (80, 90, 100, 120)  # A100, H100, B200, RTX 50
TYPES = {"bfloat16": "bf16", "float16": "fp16"}
REGISTERS = 65536  # registers of a multiprocessor
SHARED_BYTES = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10, 120: 100 << 10}  # shared memory of a multiprocessor
MOST_PROGRAMS = {80: 32, 90: 32, 100: 32, 120: 24}  # programs at a time on a multiprocessor
MOST_THREADS = {80: 2048, 90: 2048, 100: 2048, 120: 1536}
# In every model these pointers and strides are multiples of 16 bytes or elements. Triton knows this at a launch, too.
DIVISIBLE = ("x", "y", "h", "weights", "floats", "x_stride", "y_stride")


@dataclass(frozen=True, slots=True)
class Compiled:
    architecture: int
    dtype: str
    configuration: str
    registers: int  # registers of a thread
    shared_bytes: int  # shared memory of a program
    spilled_bytes: int
    instructions: int  # lines of PTX
    programs: int  # programs at a time on a multiprocessor


def run(args: argparse.Namespace) -> int:
    """Returns 1 if any kernel spills, otherwise 0."""
    results = [_print_done(compiled) for compiled in compile_all(args.architectures, args.dtypes)]
    print(format_table(*_table(results)))
    if args.json is not None:
        report = {"triton": version("triton"), "results": [asdict(result) for result in results]}
        write_json(args.json, report)
    return int(any(result.spilled_bytes for result in results))


def compile_all(architectures: Sequence[int], dtypes: Sequence[str]) -> Iterator[Compiled]:
    """Compiles all configurations. Raises ValueError for an unknown architecture or type, and if Triton's interpreter
    is on."""
    from blora.adapters.triton import kernels
    from blora.adapters.triton.configurations import configurations

    if kernels.is_interpreted():
        raise ValueError("TRITON_INTERPRET is set, so Triton compiles nothing; unset it")
    for architecture in architectures:
        for dtype in dtypes:
            for configuration in configurations():
                yield _compile(architecture, dtype, configuration)


def _compile(architecture: int, dtype: str, configuration: Any) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from blora.adapters.triton import kernels

    if architecture not in ARCHITECTURES or dtype not in TYPES:
        raise ValueError(f"sm_{architecture} {dtype}: give one of {ARCHITECTURES} and of {', '.join(TYPES)}")
    kernel = getattr(kernels, configuration.kernel)
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: _type_of(name, TYPES[dtype], configuration.constants) for name in names},
        constexprs=dict(configuration.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in DIVISIBLE if name in names},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(configuration.options))
    registers, spilled = _resources(compiled.asm["ptx"], architecture)
    shared, threads = compiled.metadata.shared, 32 * configuration.options["num_warps"]
    return Compiled(
        architecture=architecture,
        dtype=dtype,
        configuration=str(configuration),
        registers=registers,
        shared_bytes=shared,
        spilled_bytes=spilled,
        instructions=sum(line.rstrip().endswith(";") for line in compiled.asm["ptx"].splitlines()),
        programs=min(
            MOST_PROGRAMS[architecture],
            MOST_THREADS[architecture] // threads,
            REGISTERS // (-(-registers // 8) * 8 * threads),
            SHARED_BYTES[architecture] // (shared + 1024),  # CUDA takes a kilobyte for each program
        ),
    )


def _type_of(name: str, dtype: str, constants: dict[str, int]) -> str:
    pointers = {"x": dtype, "y": dtype, "weights": dtype, "h": "fp32", "floats": "fp32", "panels": "i32"}
    pointers |= dict.fromkeys(("header", "uses", "strips"), "i64")
    if name in constants:
        return "constexpr"
    return f"*{pointers[name]}" if name in pointers else "i32"


def _resources(ptx: str, architecture: int) -> tuple[int, int]:
    """Returns the registers of a thread and the spilled bytes."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        arch = sm_arch_from_capability(architecture)
        # Triton uses the same flags for its own compilation.
        flags = ["-lineinfo", "-v", "--regAllocOptLevel=2", f"--gpu-name={arch}"]
        line = [get_ptxas(architecture).path, *flags, file.name, "-o", "/dev/null"]
        told = subprocess.run(line, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", told)))
    found = re.search(r"Used (\d+) registers", told)
    if found is None:
        raise ValueError(f"the output of ptxas has no number of registers: {told!r}")
    return int(found[1]), spilled


def _print_done(compiled: Compiled) -> Compiled:
    print(f"sm_{compiled.architecture} {compiled.dtype} {compiled.configuration}", flush=True)
    return compiled


def _table(results: Sequence[Compiled]) -> tuple[Sequence[str], list[list[Cell]]]:
    header = ("kernel", "arch", "dtype", "registers", "shared bytes", "spilled", "programs/SM")
    rows: list[list[Cell]] = [
        [
            result.configuration,
            f"sm_{result.architecture}",
            result.dtype,
            result.registers,
            result.shared_bytes,
            result.spilled_bytes,
            result.programs,
        ]
        for result in results
    ]
    return header, rows
