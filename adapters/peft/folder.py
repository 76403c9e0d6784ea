"""AdapterFolder: the files of an adapter folder, found and read once into private memory.

Owns the names of the files and the rules about places. Must not know their content, except to say what a foreign file
is. A checkpoint of a trainer may be a subfolder, and weights may be divided among shards.
"""

import json
import os
import re
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .foreign import LFS_POINTER, is_lfs_pointer, kind_of_folder
from .roots import Roots, allows_file, allows_folder

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
INDEX_FILE = "adapter_model.safetensors.index.json"
SHARD_PATTERN = re.compile(r"adapter_model-(\d{5})-of-(\d{5})\.safetensors")
SHARDS_GLOB = "adapter_model-*-of-*.safetensors"
CHECKPOINT_PATTERN = re.compile(r"checkpoint-\d+")
MAX_SHARDS = 100
TICK = 0.01  # seconds, at most, in which two writes may leave the same time on a file
MAX_INDEX_BYTES = 4 << 20
MAX_ENTRIES = 10_000  # files of a folder that are looked at


class Unreadable(Exception):
    """A file that is missing, not allowed, not regular, too large or malformed."""


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    path: Path  # with the files in it
    weights: tuple[str, ...]  # names of files
    roots: Roots
    checkpoint: str = ""  # the subfolder that holds the files, or ""

    @property
    def warnings(self) -> tuple[str, ...]:
        return (f"the adapter is that of the folder's only checkpoint, {self.checkpoint}",) if self.checkpoint else ()

    def read(self, name: str, max_bytes: int) -> bytes:
        """Raises Unreadable."""
        return _read_file(self.path / name, max_bytes, self.roots)

    def read_if_there(self, name: str, max_bytes: int) -> bytes | None:
        return self.read(name, max_bytes) if os.path.lexists(self.path / name) else None

    def read_weights(self, max_bytes: int) -> list[bytes]:
        """Returns the content of each weights file, of at most max_bytes together. Raises Unreadable."""
        contents: list[bytes] = []
        for name in self.weights:
            contents.append(self.read(name, max_bytes - sum(map(len, contents))))
        return contents


def open_folder(path: Path, roots: Roots) -> AdapterFolder:
    """Finds the files of an adapter. Raises Unreadable."""
    names = _names_in(path, roots)
    checkpoint = "" if CONFIG_FILE in names else _only_checkpoint(path, names)
    if checkpoint:
        path = path / checkpoint
        names = _names_in(path, roots)
    _check_kind(names)
    return AdapterFolder(path, _weights_of(path, names, roots), roots, checkpoint)


def is_adapter_file(name: str) -> bool:
    """Whether a file of this name belongs to an adapter's configuration or weights."""
    return name in (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE) or SHARD_PATTERN.fullmatch(name) is not None


def adapter_files(folder: Path) -> list[Path]:
    """Returns the configuration and the weights that `open_folder` finds, which may not be there. The list is empty if
    it finds none. Opens no file but an index."""
    try:
        found = open_folder(folder, None)
    except Unreadable:
        return []
    return [found.path / name for name in (CONFIG_FILE, *found.weights)]


def _names_in(path: Path, roots: Roots) -> frozenset[str]:
    """Returns the names of the folder's files. The names of a place that is not allowed are not looked at, and those of
    an unreadable one come out when a file is read."""
    try:
        real = path.resolve()
        _require(allows_folder(roots, real), CONFIG_FILE)
        descriptor = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (OSError, RuntimeError, ValueError):
        return frozenset()
    try:
        _require(allows_folder(roots, Path(f"/proc/self/fd/{descriptor}").readlink()), CONFIG_FILE)
        with os.scandir(descriptor) as entries:
            return frozenset(entry.name for entry in islice(entries, MAX_ENTRIES))
    except OSError:
        return frozenset()
    finally:
        os.close(descriptor)


def _only_checkpoint(path: Path, names: frozenset[str]) -> str:
    """Returns the subfolder that holds a trainer's only checkpoint, or ""."""
    names = frozenset(filter(CHECKPOINT_PATTERN.fullmatch, names))
    found = sorted((name for name in names if os.path.lexists(path / name / CONFIG_FILE)), key=lambda n: (len(n), n))
    if len(found) > 1:
        raise Unreadable(f"the folder holds {len(found)} checkpoints: load one of {', '.join(found[:5])}")
    return found[0] if found else ""


def _check_kind(names: frozenset[str]) -> None:
    """Raises Unreadable for a folder whose files tell that it is something else."""
    has_weights = WEIGHTS_FILE in names or INDEX_FILE in names or any(map(SHARD_PATTERN.fullmatch, names))
    kind = None if has_weights or len(names) == MAX_ENTRIES else kind_of_folder(names)
    if kind is not None:
        raise Unreadable(f"{WEIGHTS_FILE} is missing; {kind}")


def _weights_of(path: Path, names: frozenset[str], roots: Roots) -> tuple[str, ...]:
    if WEIGHTS_FILE in names:
        return (WEIGHTS_FILE,)
    if INDEX_FILE in names:
        return _indexed(_read_file(path / INDEX_FILE, MAX_INDEX_BYTES, roots))
    shards = sorted(name for name in names if SHARD_PATTERN.fullmatch(name))
    return _whole_set(shards) if shards else (WEIGHTS_FILE,)


def _indexed(content: bytes) -> tuple[str, ...]:
    """Returns the files that an index names."""
    try:
        names = set(json.loads(content)["weight_map"].values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{INDEX_FILE} does not hold a weight_map from tensors to files") from error
    if not names or not all(isinstance(name, str) and SHARD_PATTERN.fullmatch(name) for name in names):
        raise Unreadable(f"{INDEX_FILE} names other files than adapter_model-00001-of-00002.safetensors and so on")
    return _whole_set(sorted(names))


def _whole_set(shards: Sequence[str]) -> tuple[str, ...]:
    """Returns the shards, which have to be all of one set."""
    total = int(shards[0][-17:-12])
    if total > MAX_SHARDS:
        raise Unreadable(f"the weights are divided among {total} files, at most {MAX_SHARDS} are read")
    wanted = tuple(f"adapter_model-{number:05}-of-{total:05}.safetensors" for number in range(1, total + 1))
    missing = [name for name in wanted if name not in shards]
    if missing or len(wanted) != len(shards):
        raise Unreadable(f"of the shards {wanted[0]} to {wanted[-1]}, some are missing: {', '.join(missing[:3])}")
    return wanted


def _read_file(path: Path, max_bytes: int, roots: Roots) -> bytes:
    """Returns the whole file, copied into private memory: later changes of the file cannot change checked content."""
    try:
        real = path.resolve()
        # The place is checked before the file is touched, so that a client cannot learn which files exist outside, and
        # again after it is open, because meanwhile a folder of the path may have been replaced by a link.
        _require(allows_folder(roots, path.parent.resolve()) and allows_file(roots, real), path.name)
        with open(real, "rb", opener=_open_resolved) as file:
            _require(allows_file(roots, Path(f"/proc/self/fd/{file.fileno()}").readlink()), path.name)
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise Unreadable(f"{path.name} is not a regular file")
            if state.st_size > max_bytes:
                raise Unreadable(f"{path.name} has {state.st_size} bytes, at most {max_bytes} are read")
            _let_tick_pass(state.st_mtime)
            content = file.read(state.st_size + 1)  # `read` allocates as many bytes as are requested
            is_same = os.fstat(file.fileno()).st_mtime_ns == state.st_mtime_ns  # else the content may mix two versions
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a usable path"
        raise Unreadable(f"{path.name} cannot be read: {reason}") from error
    if len(content) != state.st_size or not is_same:
        raise changed(path.name)
    if is_lfs_pointer(content):
        raise Unreadable(f"{path.name} is {LFS_POINTER}")
    return content


def changed(name: str) -> Unreadable:
    return Unreadable(f"{name} changed while it was read; load the adapter again when its files are whole")


def _let_tick_pass(last_write: float) -> None:
    """Waits until any further write to a file leaves another time on it. last_write: the time of the last one."""
    age = time.time() - last_write
    if 0 <= age < TICK:
        time.sleep(TICK - age)


def _require(is_allowed: bool, name: str) -> None:
    if not is_allowed:
        raise Unreadable(f"{name} lies outside the allowed folders")


def _open_resolved(path: str, flags: int) -> int:
    """Opens a file without blocking, so that a FIFO cannot hang the process, and without following links, because the
    path is resolved already."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
