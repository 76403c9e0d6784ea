"""The build of the native kernels: without a compiler they are left out, unless they are required."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("kernels", "status"), [("optional", 0), ("required", 1)])
def test_a_kernel_that_does_not_compile_is_an_error_for_developers(tmp_path: Path, kernels: str, status: int) -> None:
    pytest.importorskip("setuptools")
    compiler = dict.fromkeys(("CC", "CXX"), "/bin/false")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path],
        cwd=ROOT,
        env=os.environ | compiler | {"BLORA_KERNELS": kernels},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert "/bin/false" in done.stderr and not list(tmp_path.rglob("*.so"))
