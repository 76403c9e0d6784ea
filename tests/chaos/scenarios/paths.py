"""F3, F4: nothing outside an adapter root is read, and files that change while they are read hurt nobody."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc

from blora.bench.load import Planned
from blora.proto.client import Client

from ..gates import Check, at_least, equal, gate, none_of
from ..mixed import GREEDY
from ..room import CONFIG, WEIGHTS, Room, Server, copied

ROUNDS = 500
LIMIT = 20.0  # seconds for a load; one that takes longer hangs
PROMPT = [5, 6, 7, 8]
REFUSED = ("FAILED_PRECONDITION", "INVALID_ARGUMENT", "ABORTED", "NOT_FOUND")


@gate(
    "F3",
    "adapters",
    "more than 200 names and paths that lead out of the adapter root: by dots, absolute, by links of files, folders "
    "and parents, to pipes and devices",
    "each is refused; no file outside the root is read; no load hangs",
)
def paths(room: Room) -> Iterator[Check]:
    root, outside = room.folder / "root", copied(room.adapter, room.folder / "outside")
    copied(room.adapter, root / "good")
    tried = list(_leading_out(root, outside))
    with room.server(room.tiny, "--memory", "8MB", "--adapter-root", str(root)) as server:
        _forget_reads(outside)
        wrong = [f"{path!r}: {end}" for path in tried if (end := _load(server.client, "bad", path)) not in REFUSED]
        read = [file.name for file in outside.iterdir() if file.stat().st_atime_ns != 0]
        names = [name for name in BAD_NAMES if _load(server.client, name, str(root / "good")) != "INVALID_ARGUMENT"]
        yield none_of("paths that were not refused", wrong, len(tried))
        yield none_of("files outside that were read", read, len(tried))
        yield none_of("names that were not refused", names, len(BAD_NAMES))
        yield at_least("tried", len(tried) + len(BAD_NAMES), 200)
        yield equal("a good path", _load(server.client, "good", str(root / "good")), "OK")
        (outside / CONFIG).read_bytes()
        yield equal("a read is noticed", (outside / CONFIG).stat().st_atime_ns != 0, True)


BAD_NAMES = (
    *("", ".", "..", "../x", "/etc", "a//b", "a/../b", "/a", "a/", "-a", "_a", " a", "a b", "a\n", "a\0b", "a\\b", "~"),
    *("$(id)", "`id`", "a;b", "a|b", "a&b", "a?b", "a*b", "a%2e%2e", "a:b", "a@b", "a=b"),
    *("\u00e9", "\uff0e\uff0e", "\u202ea", "x" * 129, "x" * 10_000),
)


def _leading_out(root: Path, outside: Path) -> Iterator[str]:
    """Yields paths; makes the links and special files that some need."""
    ups = ["..", "../", "./..", "good/../..", "good/./../..", "....//..", "good/..//..", "..%2f", "%2e%2e", "..\\"]
    targets = ["outside", "./outside", "outside/", "outside/.", f"outside/{CONFIG}", "root/../outside"]
    yield from (f"{root}/{up}/{target}" for up in ups for target in targets)
    yield from (f"{up}/{target}" for up in ups for target in targets)
    yield from (
        "/",
        "/etc",
        "/etc/passwd",
        "/proc/self",
        "/proc/self/cwd",
        "/dev",
        "/dev/zero",
        "/dev/stdin",
        "/dev/fd/0",
    )
    yield from ("", ".", "~", "~root", "$HOME", "file:///etc", "\0", f"{root}\0/good", "x" * 5000, f"{root}/missing")
    yield from (str(outside), f"{outside}/", str(outside.parent), f"{outside}/{WEIGHTS}")
    (root / "link").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    (root / "up").symlink_to("..")
    (root / "relative").symlink_to("../outside")
    yield from (f"{root}/{name}" for name in ("link", "link/", "link/.", "loop", "up/outside", "relative", "up"))
    for number, (name, make) in enumerate((n, m) for n in (CONFIG, WEIGHTS) for m in SPECIAL):
        folder = copied(root / "good", root / f"special-{number}")
        (folder / name).unlink()
        make(folder / name, outside / name)
        yield str(folder)
    for number, device in enumerate(DEVICES):
        for name in (CONFIG, WEIGHTS):
            folder = copied(root / "good", root / f"device-{number}-{name}")
            (folder / name).unlink()
            (folder / name).symlink_to(device)
            yield str(folder)


DEVICES = ("/dev/zero", "/dev/random", "/dev/tty", "/proc/self/mem", "/proc/kmsg", "/etc/shadow")
SPECIAL = (
    lambda path, outside: path.symlink_to(outside),
    lambda path, _: path.symlink_to(path),
    lambda path, outside: path.symlink_to(os.path.relpath(outside, path.parent)),
    lambda path, _: os.mkfifo(path),
    lambda path, _: path.mkdir(),
    lambda path, _: path.symlink_to("/dev/stdin"),
)


def _forget_reads(folder: Path) -> None:
    """Sets the time of access to 0, so that the next read shows."""
    for file in folder.iterdir():
        os.utime(file, ns=(0, file.stat().st_mtime_ns))


def _load(client: Client, name: str, path: str) -> str:
    try:
        client.load_adapter(name, path)
    except grpc.RpcError as error:
        return str(error.code().name)
    except ValueError:  # no message can hold it
        return "INVALID_ARGUMENT"
    return "OK"


@gate(
    "F4",
    "adapters",
    "500 loads of a folder whose files are rewritten, cut, replaced and removed meanwhile",
    "each is refused, or serves exactly one of the contents that were there; no process ends",
)
def changing_files(room: Room) -> Iterator[Check]:
    root = room.folder / "root"
    contents = list(room.adapters(2).values())
    folder = copied(contents[0], root / "changing")
    answers = {tuple(room.oracle(room.tiny, {"x": path}).answer(_asked())[0].token_ids): path for path in contents}
    with room.server(room.tiny, "--memory", "8MB", "--adapter-root", str(root)) as server:
        children, ends, wrong = server.facts.children(), [], []
        with Rewriting(folder, contents):
            for _ in range(room.scaled(ROUNDS)):
                ends.append(end := _load(server.client, "changing", str(folder)))
                if end == "OK":
                    wrong += _answer_of_neither(server, answers)
        others = [end for end in ends if end not in ("OK", *REFUSED)]
        yield none_of("other ends", others, len(ends))
        yield none_of("answers of neither content", wrong, ends.count("OK"))
        yield equal("processes that ended", len(children.keys() - server.facts.children().keys()), 0)
        yield at_least("loaded", ends.count("OK") / len(ends), 0.02, "%")
        yield at_least("refused", 1 - ends.count("OK") / len(ends), 0.02, "%")


def _asked() -> Planned:
    return Planned(seconds=0.0, prompt=PROMPT, max_tokens=12, adapter="x", sampling=dict(GREEDY))


def _answer_of_neither(server: Server, answers: dict[tuple[int, ...], Path]) -> list[str]:
    found = tuple(server.client.generate(PROMPT, "changing", max_tokens=12, **GREEDY).samples[0].token_ids)
    return [] if found in answers else [str(found)]


class Rewriting:
    """A thread that changes a folder between contents, in every way that files change."""

    def __init__(self, folder: Path, contents: list[Path]) -> None:
        self._folder, self._contents = folder, contents
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._is_done.is_set():
            number += 1
            source = self._contents[number % len(self._contents)]
            if number % 7 == 0:
                os.truncate(self._folder / WEIGHTS, 1000)
            for name in (CONFIG, WEIGHTS):
                content = (source / name).read_bytes()
                if number % 3 == 0:  # at once
                    (self._folder / f"{name}.new").write_bytes(content)
                    (self._folder / f"{name}.new").rename(self._folder / name)
                else:
                    (self._folder / name).write_bytes(content)
            self._is_done.wait(0.02 if number % 2 else 0.002)
