"""Sealed memory: no process can change it, and other descriptors are refused."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from blora.engine.ipc.sealed_memory import SEALS, Bytes, map_sealed, seal

CONTENT = np.arange(3 * 4096 + 5, dtype=np.uint32).view(np.uint8)


@pytest.fixture
def descriptor() -> Iterator[int]:
    """A descriptor of sealed content. The test may close it, or have it closed."""
    number = seal(CONTENT)
    yield number
    if is_open(number):
        os.close(number)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_what_was_sealed_is_mapped(descriptor: int) -> None:
    np.testing.assert_array_equal(map_sealed(descriptor, CONTENT.size), CONTENT)


def test_a_matrix_of_pages_is_sealed_row_after_row() -> None:
    pages = CONTENT[: 3 * 4096].reshape(3, 4096)
    np.testing.assert_array_equal(map_sealed(seal(pages), pages.size), pages.ravel())


def test_the_content_is_a_copy() -> None:
    content: Bytes = CONTENT.copy()
    number = seal(content)
    content[:] = 0
    np.testing.assert_array_equal(map_sealed(number, content.size), CONTENT)


def test_it_cannot_be_written(descriptor: int) -> None:
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, CONTENT.size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("num_bytes", [0, CONTENT.size - 1, CONTENT.size + 1])
def test_it_can_neither_grow_nor_shrink(num_bytes: int, descriptor: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, num_bytes)


def test_it_cannot_be_opened_again_to_write(descriptor: int) -> None:
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.pwrite(again, b"x", 0)
    os.close(again)


def test_its_seals_are_final(descriptor: int) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_writing_to_a_mapping_changes_no_other(descriptor: int) -> None:
    other = os.dup(descriptor)
    map_sealed(descriptor, CONTENT.size)[:] = 0
    np.testing.assert_array_equal(map_sealed(other, CONTENT.size), CONTENT)


def test_a_mapping_outlives_its_descriptor(descriptor: int) -> None:
    mapped = map_sealed(descriptor, CONTENT.size)
    assert not is_open(descriptor)
    assert int(mapped[4]) == 1


@pytest.mark.parametrize("num_bytes", [0, 1, CONTENT.size - 1, CONTENT.size + 1, 1 << 40])
def test_another_size_is_refused(num_bytes: int, descriptor: int) -> None:
    with pytest.raises(ValueError, match=f"not {num_bytes} bytes of sealed memory"):
        map_sealed(descriptor, num_bytes)
    assert not is_open(descriptor)


@pytest.mark.parametrize("missing", [fcntl.F_SEAL_WRITE, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_SEAL])
def test_memory_with_a_seal_missing_is_refused(missing: int) -> None:
    number = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(number, b"x" * 100)
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, SEALS & ~missing)
    with pytest.raises(ValueError, match="not 100 bytes of sealed memory"):
        map_sealed(number, 100)
    assert not is_open(number)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    number = os.open(tmp_path / "file", os.O_RDWR)
    with pytest.raises(ValueError, match="not 100 bytes of sealed memory"):
        map_sealed(number, 100)
    assert not is_open(number)


def test_a_pipe_is_refused() -> None:
    read, write = os.pipe()
    os.close(write)
    with pytest.raises(ValueError, match="not 100 bytes of sealed memory"):
        map_sealed(read, 100)
    assert not is_open(read)
