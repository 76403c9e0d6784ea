"""The native kernels: one extension of the same sources for each instruction set. All else is in pyproject.toml.

An extension that cannot be built is left out: without a compiler blora still runs, on its slow reference kernels. With
BLORA_KERNELS=required in the environment it is an error, as a developer wants it.
"""

import os
import platform

from setuptools import Extension, setup

FOLDER = "engine/kernels"
SOURCES = [
    f"{FOLDER}/{name}.cpp" for name in ("linear", "attention", "norm", "decoder", "sampling", "team", "token_rows")
]
HEADERS = [
    f"{FOLDER}/{name}.h"
    for name in (
        "amx",
        "changes",
        "entry",
        "fetches",
        "gain_shift",
        "lora",
        "lora_amx",
        "multiply",
        "norm",
        "pack",
        "scratch",
        "simd",
        "team",
        "types",
    )
]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
FLAGS = {"base": []}
if platform.machine() == "x86_64":
    AVX512BF16 = [*AVX512, "-mavx512bf16"]
    FLAGS |= {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512bf16": AVX512BF16}
    FLAGS |= {"amx": [*AVX512BF16, "-mamx-tile", "-mamx-bf16"]}
# Results must not depend on what the compiler likes to fuse or reorder.
COMMON = ["-std=c++17", "-O3", "-ffp-contract=off", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]

setup(
    ext_modules=[
        Extension(
            f"blora.engine.kernels._{name}",
            SOURCES,
            depends=HEADERS,
            extra_compile_args=[*COMMON, *flags],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=os.environ.get("BLORA_KERNELS") != "required",
        )
        for name, flags in FLAGS.items()
    ]
)
