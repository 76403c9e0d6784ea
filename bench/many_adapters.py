"""Many adapters with few weights: each has its own digest, and those of one folder share their pages in host memory.

So thousands fit into the memory of a small machine, but their copies into the arena are real.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

from blora.adapters import AdapterImage, Checkpoint, pack, read_checkpoint, report_of
from blora.engine import LLM
from blora.engine import llm as llm_module


def load_many(llm: LLM, folders: Sequence[Path], num_adapters: int) -> list[str]:
    """Loads adapter i from folders[i % len(folders)]; returns the names."""
    names = [f"adapter{index}" for index in range(num_adapters)]
    with _reading_once():
        for index, name in enumerate(names):
            llm.load_adapter(name, folders[index % len(folders)])
    return names


@contextmanager
def _reading_once() -> Iterator[None]:
    """Inside `with`, the LLMs of this process read and pack each folder once, and give it another digest at each
    load."""
    read, pack_of, report = (_once_a_folder(function) for function in (read_checkpoint, pack, report_of))
    digests = map("{:064x}".format, count())

    def read_as_another(folder: Path, *args: Any, **options: Any) -> Checkpoint:
        checkpoint: Checkpoint = read(folder, *args, **options)
        return replace(checkpoint, digest=next(digests))

    def pack_as_another(checkpoint: Checkpoint, *args: Any) -> AdapterImage:
        image: AdapterImage = pack_of(checkpoint, *args)
        return replace(image, table=replace(image.table, digest=checkpoint.digest))

    with mock.patch.multiple(llm_module, read_checkpoint=read_as_another, pack=pack_as_another, report_of=report):
        yield


def _once_a_folder(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that computes once for each folder. function: takes a folder, or the checkpoint read from
    one."""
    known: dict[str, Any] = {}

    def once(what: Path | Checkpoint, *args: Any, **options: Any) -> Any:
        folder = what.path if isinstance(what, Checkpoint) else str(what)
        if folder not in known:
            known[folder] = function(what, *args, **options)
        return known[folder]

    return once
