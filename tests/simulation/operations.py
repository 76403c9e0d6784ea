"""Operations: what clients, the owner of the engine and bad luck do to it, drawn by a seed.

An operation knows no state: it names a request or an adapter by a number or a name, so that any of them can be left out
of a trace and the others stay what they are.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from simulation.runner import FIRST_CHARACTER, LETTERS

NAMES = ("a", "b", "c", "d")  # loaded, replaced and unloaded by their owner
PATH_NAMES = ("p", "q")  # loaded by the requests that bring their paths
FOLDERS = tuple(f"/sim/{name}" for name in ("one", "two", "three", "four"))
CHILDREN = ("loader", "lookout", "text")
INVOCATION = tuple(LETTERS[:2])


@dataclass(frozen=True, slots=True)
class Operation:
    after: float  # virtual seconds since the one before
    kind: str
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"after {self.after:.4f} s: {self.kind} {self.values}"


def operations(seed: int, count: int) -> list[Operation]:
    draw = random.Random(f"operations {seed}")
    kinds, luck = list(KINDS), draw.choice((0.0, 0.3, 1.0, 3.0))
    weights = [weight * (luck if kind in FAULTS else 1.0) for kind, (weight, _) in KINDS.items()]
    return [Operation(_gap(draw), kind, KINDS[kind][1](draw)) for kind in draw.choices(kinds, weights, k=count)]


def _gap(draw: random.Random) -> float:
    if draw.random() < 0.4:
        return 0.0
    return draw.expovariate(1 / 0.5) if draw.random() < 0.03 else draw.expovariate(1 / 0.015)


def _prompt(draw: random.Random) -> list[int]:
    """Beginnings are shared, so that blocks are found in the prefix cache."""
    shared = [LETTERS[index * index % len(LETTERS)] for index in range(draw.choice((0, 4, 8, 12, 24)))]
    own = [draw.choice(LETTERS) for _ in range(draw.randrange(0, 12))]
    return [*shared, *(INVOCATION if draw.random() < 0.3 else ()), *own]


def _adapters(draw: random.Random) -> list[tuple[str, float]]:
    count = draw.choices((0, 1, 2), (4, 5, 1))[0]
    return [(name, draw.choice((1.0, 1.0, 0.5))) for name in draw.sample(NAMES, count)]


def _generate(draw: random.Random) -> dict[str, Any]:
    sampling: dict[str, Any] = {
        "n": draw.choices((1, 2, 4), (6, 1, 1))[0],
        "max_tokens": draw.choice((1, 3, 8, 16, 40)),
        "output_kind": draw.choice(("CUMULATIVE", "DELTA", "DELTA", "FINAL_ONLY")),
    }
    if draw.random() < 0.3:
        sampling["seed"] = draw.randrange(1 << 20)
    if draw.random() < 0.3:
        sampling["stop"] = [_text(draw.choices(LETTERS, k=draw.choice((1, 2, 3)))) for _ in range(2)]
        sampling["include_stop_str_in_output"] = draw.random() < 0.5
    elif draw.random() < 0.2:
        sampling["min_tokens"] = draw.randrange(sampling["max_tokens"] + 1)
    if draw.random() < 0.2:
        sampling["stop_token_ids"] = [draw.choice(LETTERS)]
    if draw.random() < 0.2:
        sampling["ignore_eos"] = True
    if draw.random() < 0.2:
        sampling["logprobs"] = draw.randrange(3)
    if draw.random() < 0.15:
        sampling["prompt_logprobs"] = draw.randrange(2)
    return {
        "prompt": _prompt(draw),
        "sampling": sampling,
        "adapters": _adapters(draw),
        "priority": draw.choice((0, 0, 0, 1, -1)),
        "tenant": draw.choice(("", "red", "blue")),
        "salt": draw.choice(("", "", "salt")),
        "closes_after": draw.choice((None, None, None, None, 1, 2)),  # outputs, after which the client goes
        "seconds": draw.choice((None, None, None, None, 0.02, 0.2, 2.0)),  # until the deadline
        "form": draw.choice(("tokens", "tokens", "text", "chat")),
        "pause": draw.choice((0.0, 0.0, 0.0, 0.05)),  # seconds that the client takes over each output
    }


def _generate_by_path(draw: random.Random) -> dict[str, Any]:
    values, name = _generate(draw), draw.choice(PATH_NAMES)
    folder = draw.choice(FOLDERS) if draw.random() < 0.1 else FOLDERS[PATH_NAMES.index(name)]
    return values | {"adapters": [], "path": (name, folder)}


def _name(draw: random.Random) -> dict[str, Any]:
    return {"name": draw.choice(NAMES)}


def _load(draw: random.Random) -> dict[str, Any]:
    return {"name": draw.choice(NAMES), "folder": draw.choice((*FOLDERS, "/sim/none")), "pinned": draw.random() < 0.1}


def _upload(draw: random.Random) -> dict[str, Any]:
    version = draw.randrange(4)
    return {"name": draw.choice(NAMES), "digest": f"upload{version}", "num_pages": 1 + version % 3}


def _change_files(draw: random.Random) -> dict[str, Any]:
    folder = draw.choice(FOLDERS)
    version = draw.randrange(3)
    return {
        "folder": folder,
        "digest": f"{folder.rpartition('/')[2]}{version}",
        "num_pages": 1 + (len(folder) + version) % 4,
        "is_activated": folder.endswith("four"),
        "problem": "is damaged" if draw.random() < 0.15 else "",
    }


def _text(token_ids: list[int]) -> str:
    return "".join(chr(token_id + FIRST_CHARACTER) for token_id in token_ids)


def _nothing(_: random.Random) -> dict[str, Any]:
    return {}


def _any_call(draw: random.Random) -> dict[str, Any]:
    return {"call": draw.randrange(64)}


FAULTS = (
    "kill_engine",
    "stand_still",
    "break_engine",
    "fail_steps",
    "fail_starts",
    "kill_child",
    "fault_child",
    "fail_copies",
)
KINDS: dict[str, tuple[float, Callable[[random.Random], dict[str, Any]]]] = {
    "generate": (40, _generate),
    "generate_by_path": (6, _generate_by_path),
    "cancel": (8, _any_call),
    "abort": (4, _any_call),
    "load": (9, _load),
    "upload": (3, _upload),
    "unload": (4, lambda draw: _name(draw) | {"abort": draw.random() < 0.3}),
    "activate": (2, lambda draw: _name(draw) | {"version": draw.randrange(1, 6)}),
    "pin": (3, lambda draw: _name(draw) | {"pinned": draw.random() < 0.5}),
    "warm": (2, _name),
    "change_files": (5, _change_files),
    "inspect": (1, lambda draw: {"folder": draw.choice(FOLDERS)}),
    "list": (2, _nothing),
    "watch": (1, lambda draw: {"num_events": draw.randrange(1, 12)}),
    "info": (1, _nothing),
    "reset": (1, lambda draw: {"also_running": draw.random() < 0.5}),
    "kill_engine": (1, lambda draw: {"frames": draw.choice((None, 0, 1, 3)), "status": draw.choice((-9, -9, -11, 1))}),
    "stand_still": (0.5, lambda draw: {"seconds": draw.choice((0.05, 1.0, 1e9))}),
    "break_engine": (0.3, _nothing),
    "fail_steps": (1, lambda draw: {"count": draw.choice((1, 2, 5))}),
    "fail_copies": (1, lambda draw: {"count": draw.choice((1, 2))}),
    "fail_starts": (0.3, lambda draw: {"count": draw.choice((1, 3))}),
    "kill_child": (1, lambda draw: {"child": draw.choice(CHILDREN)}),
    "fault_child": (1, lambda draw: {"child": draw.choice(CHILDREN), "hangs": draw.random() < 0.2}),
}
