"""The adapter loader: a child process that reads, checks and packs adapters at the lowest priority.

A hostile or slow file can hurt only this process, and reading takes no time of the engine or the front end. Imports no
torch until it reads an adapter that depends on the base model's tensors.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from blora.adapters import (
    AdapterRejected,
    AdapterReport,
    AdapterTooLarge,
    ModuleCuts,
    inspect_adapter,
    pack,
    read_checkpoint,
    report_of,
)

from ..adapter_store.watched_folder import look_into
from ..ipc.channel import Channel, ChannelClosed, open_channel
from ..ipc.messages import (
    AdapterInspected,
    AdapterRead,
    AdapterUnreadable,
    FolderSeen,
    InspectAdapter,
    LookInto,
    ReadAdapter,
    ReadUploaded,
    ToLoader,
)
from ..ipc.sealed_memory import seal
from ..logs import set_up_as_told
from ..model.shard import module_cuts
from ..model_files.base_tensors import BaseTensorFiles
from ..model_files.read_config import load_model_config
from ..text.adapter_tokenizers import AdapterTokenizers
from ..text.tokenizer import load_tokenizer
from .background import go_to_background

WORST_TO_LOSE = "1000"  # oom_score_adj: the kernel kills this process first when memory runs out


def serve(channel: Channel[ToLoader]) -> None:
    while True:
        for order in channel.receive(wait=True):
            match order:
                case ReadAdapter():
                    _read(channel, order)
                case ReadUploaded(order, files, folder):
                    _unpack(channel.receive_descriptor(), files, Path(folder))
                    _read(channel, order, Path(folder))
                case LookInto(folder):
                    _look(channel, folder)
                case InspectAdapter(order):
                    channel.send(AdapterInspected(_inspect(order)))


def _read(channel: Channel[ToLoader], order: ReadAdapter, unpacked: Path | None = None) -> None:
    folder, base = unpacked or Path(order.path), _base_weights(order.model)
    try:
        checkpoint = read_checkpoint(folder, order.targets, _roots(order), base, order.max_elements)
        if not checkpoint.text.is_empty:
            _tokenizers(order.model, order.vocab_size).judge(order.path, checkpoint.text, checkpoint.vocab_size)
        cuts = _cuts(order.model, order.num_shards)
        image = pack(checkpoint, order.dtype, order.page_bytes, order.layout, cuts)
    except AdapterRejected as error:
        channel.send(AdapterUnreadable(list(error.problems)))
        return
    except AdapterTooLarge as error:
        channel.send(AdapterUnreadable([str(error)]))
        return
    except MemoryError:
        channel.send(AdapterUnreadable(["there is too little memory to read it"]))
        return
    descriptor = seal(image.pages)
    report = replace(report_of(checkpoint, image.table), path=order.path)
    channel.send(AdapterRead(image.table, report, checkpoint.fingerprint, checkpoint.signatures), descriptor)
    os.close(descriptor)


def _look(channel: Channel[ToLoader], folder: str) -> None:
    try:
        channel.send(FolderSeen(look_into(Path(folder))))
    except OSError as error:
        channel.send(AdapterUnreadable([f"cannot be read: {error.strerror}"]))


def _unpack(descriptor: int, files: Sequence[tuple[str, int]], folder: Path) -> None:
    """Writes the files that the descriptor holds one after another into the folder, and closes the descriptor."""
    with open(descriptor, "rb") as content:
        content.seek(0)
        for name, num_bytes in files:
            (folder / name).write_bytes(content.read(num_bytes))


def _inspect(order: ReadAdapter) -> AdapterReport:
    folder, base = Path(order.path), _base_weights(order.model)
    report = inspect_adapter(
        folder,
        order.targets,
        order.dtype,
        order.page_bytes,
        _roots(order),
        base,
        order.max_elements,
        order.layout,
        _cuts(order.model, order.num_shards),
    )
    return report if report.text.is_empty else _tokenizers(order.model, order.vocab_size).check_report(report)


def _roots(order: ReadAdapter) -> list[Path] | None:
    return None if order.roots is None else [Path(root) for root in order.roots]


@cache
def _cuts(model: str, num_shards: int) -> tuple[ModuleCuts, ...]:
    return module_cuts(load_model_config(Path(model)), num_shards)


@cache
def _base_weights(model: str) -> BaseTensorFiles:
    return BaseTensorFiles(Path(model))


@cache
def _tokenizers(model: str, vocab_size: int) -> AdapterTokenizers:
    return AdapterTokenizers(load_tokenizer(Path(model)), vocab_size)


def main() -> None:
    go_to_background()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(WORST_TO_LOSE)
    # The front end decides when this process ends: it closes the channel.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    set_up_as_told(sys.argv[1])
    with contextlib.suppress(ChannelClosed):
        serve(open_channel(sys.argv[2:], ToLoader))


if __name__ == "__main__":
    main()
