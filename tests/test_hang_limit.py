"""A test that never returns to Python ends its process, and no other test."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
from hang_limit import HangLimit

def pytest_configure(config):
    config.pluginmanager.register(HangLimit(config, grace=1))
"""
# PyDLL keeps the lock of the interpreter, so that no other Python thread runs. No signal ends the wait for a mutex.
HANG = """
import ctypes

def hang():
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)

"""
IN_A_TEST = HANG + "def test_a(): hang()\n"
AFTER_A_FAILURE = HANG + "def teardown_module(): hang()\ndef test_a(): raise ValueError\n"
AT_EXIT = HANG + "import atexit\ndef test_a(): atexit.register(hang)\n"


def run(folder: Path, content: str, *options: str, timeout: int = 1) -> str:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(content)
    own = ["-q", "-p", "no:cacheprovider", f"--timeout={timeout}"]
    command = [sys.executable, "-m", "pytest", *own, *options, str(folder)]
    path = {"PYTHONPATH": str(Path(__file__).parent), "PATH": ""}
    ended = subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1
    return ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("content", [IN_A_TEST, AFTER_A_FAILURE, AT_EXIT], ids=["test", "teardown", "exit"])
def test_the_process_ends_and_says_where_it_stood(tmp_path: Path, content: str) -> None:
    for timeout in (1, 5, 25):  # a busy machine may take longer than the first until it hangs
        said = run(tmp_path, content, timeout=timeout)
        if "in hang" in said:
            break
    assert "Timeout" in said and "in hang" in said


@pytest.mark.slow
def test_the_other_tests_run_in_another_process(tmp_path: Path) -> None:
    said = run(tmp_path, IN_A_TEST + "def test_b(): pass\n", "--numprocesses=1")
    assert "1 failed, 1 passed" in said and "crashed while running 'test_it.py::test_a'" in said
