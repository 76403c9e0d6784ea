"""The operating system's permission for tile registers. Each test has its own process, which asks once."""

import subprocess
import sys

import pytest

from blora.engine.kernels.instruction_sets import instruction_sets
from blora.engine.kernels.library import load_kernels

# Linux refuses as long as a thread has a signal stack too small for the registers.
REFUSED = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("memory", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(4096)
libc = ctypes.CDLL(None)
set_stack = lambda flags: libc.sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), flags, 4096)), None)
assert set_stack(0) == 0

from blora.engine.kernels.library import load_kernels
try:
    load_kernels("amx")
except PermissionError as error:
    print(error)
print(load_kernels().instruction_set)
"""

# Torch's second thread exists before the permission.
GRANTED = """
import os
import torch
from blora.engine.kernels.library import Epilogue, load_kernels
torch.set_num_threads(2)
torch.ones(512, 512) @ torch.ones(512, 512)
kernels = load_kernels("amx")
kernels.num_threads = 2

linear = kernels.pack_linear(torch.randn(512, 64).bfloat16())
x = torch.randn(20, 64).bfloat16()
def multiply(num_rows):
    y = torch.empty(num_rows, 512)
    kernels.linear(linear, x[:num_rows], y, Epilogue.STORE_FLOAT)
    return y
y = multiply(20)

child = os.fork()
if not child:
    os._exit(0 if torch.equal(multiply(20), y) else 1)
assert os.waitpid(child, 0)[1] == 0
kernels.num_threads = 1
print(torch.equal(multiply(20), y))
"""


@pytest.fixture(autouse=True)
def _has_tiles() -> None:
    if "amx" not in instruction_sets():
        pytest.skip("this machine has no tile registers")
    try:
        load_kernels("amx")
    except PermissionError as error:
        pytest.skip(str(error))


def _run(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=100)
    return done.stdout.splitlines()


def test_where_it_is_refused_the_next_best_build_is_taken() -> None:
    error, chosen = _run(REFUSED)
    assert "the registers of amx" in error
    assert chosen == "avx512bf16"


def test_it_holds_for_older_threads_and_for_children() -> None:
    assert _run(GRANTED) == ["True"]
