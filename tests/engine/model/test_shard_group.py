"""Shards that meet: what is asked of torch's groups, of which the one over NCCL cannot be made here."""

import ast
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch._C._distributed_c10d import Store

from blora.engine.model import shard_group
from blora.engine.model.meeting import create_meeting
from blora.engine.model.shard_group import ConnectedGroup

GPU = torch.device("cuda", 0)


class FakeWork:
    """The host waits for nothing; the device is done when it is."""

    def __init__(self) -> None:
        self.num_looks_left = 3

    def wait(self) -> bool:
        return True

    def is_completed(self) -> bool:
        self.num_looks_left -= 1
        return self.num_looks_left < 0


class FakeNccl:
    """With the names of torch's stub: see the test below."""

    class Options:
        _timeout = timedelta(minutes=10)

    made: "list[FakeNccl]" = []

    def __init__(self, store: Any, index: int, size: int, options: "FakeNccl.Options") -> None:
        assert store.check([f"here/{other}" for other in range(size)]) and 0 <= index < size
        self.options = options
        self.calls: list[Any] = []
        FakeNccl.made.append(self)

    def eager_connect_single_device(self, device: torch.device) -> None:
        self.calls.append(device)

    def allreduce(self, tensors: list[Tensor]) -> FakeWork:
        assert len(tensors) == 1
        return FakeWork()

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any) -> FakeWork:
        assert len(outputs) == len(inputs) == 1 and options.rootRank == 0
        return FakeWork()

    def abort(self) -> None:
        self.calls.append("abort")


@pytest.fixture
def store() -> Store:
    return create_meeting().open()


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch, store: Store) -> tuple[ConnectedGroup, FakeNccl]:
    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", FakeNccl, raising=False)
    group = ConnectedGroup(0, 1, store, GPU)
    return group, FakeNccl.made.pop()


def test_what_is_asked_of_nccl_is_there() -> None:
    """In torch's stub, which is in every wheel, with GPUs or without."""
    path = Path(torch.__file__).parent / "_C/_distributed_c10d.pyi"
    classes = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}

    def names(node: ast.ClassDef) -> set[str]:
        return {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.ClassDef)}

    def nested(node: ast.ClassDef, name: str) -> ast.ClassDef:
        return next(part for part in node.body if isinstance(part, ast.ClassDef) and part.name == name)

    backend, nccl = classes["Backend"], classes["ProcessGroupNCCL"]
    assert [ast.unparse(base) for base in nccl.bases] == ["Backend"]
    assert {"abort", "eager_connect_single_device"} <= names(backend) | names(nccl)
    assert [ast.unparse(base) for base in nested(nccl, "Options").bases] == ["Backend.Options"]
    assert "_timeout" in names(nested(backend, "Options"))
    assert "is_completed" in names(classes["Work"])
    (init,) = (part for part in nccl.body if isinstance(part, ast.FunctionDef) and part.name == "__init__")
    assert [argument.arg for argument in init.args.args] == ["self", "store", "rank", "size", "options"]


def test_nccl_is_connected_at_once_and_has_a_timeout(nccl: tuple[ConnectedGroup, FakeNccl]) -> None:
    group, made = nccl
    assert made.options._timeout == timedelta(minutes=2)
    assert made.calls == [GPU]
    group.abort()
    assert made.calls == [GPU, "abort"]


@pytest.mark.parametrize("name", ["all_reduce", "gather"])
def test_a_collective_is_looked_at_and_not_waited_for(nccl: tuple[ConnectedGroup, FakeNccl], name: str) -> None:
    group, _ = nccl
    assert group.is_done()
    getattr(group, name)(torch.ones(2))
    assert [group.is_done() for _ in range(5)] == [False, False, False, True, True]


def test_shards_that_do_not_come_are_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_group, "CONNECT_TIMEOUT", 0.1)
    with pytest.raises(RuntimeError, match=r"not all of 2 shards came within 0\.1 s"):
        ConnectedGroup(0, 2, store, torch.device("cpu"))


def test_shards_that_cannot_come_are_not_waited_for(store: Store) -> None:
    def find_one_dead() -> None:
        raise ConnectionError("shard 1")

    started = time.monotonic()
    with pytest.raises(ConnectionError, match="shard 1"):
        ConnectedGroup(0, 2, store, torch.device("cpu"), find_one_dead)
    assert time.monotonic() - started < shard_group.CONNECT_TIMEOUT / 2


def test_gloo_computes_and_is_aborted(store: Store) -> None:
    group = ConnectedGroup(0, 1, store, torch.device("cpu"))
    x = torch.ones(2)
    group.all_reduce(x)
    assert x.tolist() == [1, 1]
    assert group.is_done()
    group.abort()
