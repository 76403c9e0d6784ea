"""Cores: the affinity of the process within the quotas of its control groups, over invented trees."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from blora.engine.startup import cores
from blora.engine.startup.cores import choose_num_threads, usable_cores

MACHINE = 8


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MACHINE)))


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def make_root(root: Path, groups: str, files: dict[str, str]) -> Path:
    write(root / "proc/self/cgroup", groups)
    for name, content in files.items():
        write(root / "sys/fs/cgroup" / name.lstrip("/"), content)
    return root


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", MACHINE),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("199999 100000", 1),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("75000 25000", 3),
        ("1600000 100000", MACHINE),
        ("", MACHINE),
        ("300000", MACHINE),
        ("300000 0", MACHINE),
    ],
)
def test_a_quota_of_version_2(tmp_path: Path, quota: str, expected: int) -> None:
    assert usable_cores(make_root(tmp_path, "0::/app\n", {"app/cpu.max": f"{quota}\n"})) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [(-1, 100000, MACHINE), (300000, 100000, 3), (350000, 100000, 3), (20000, 100000, 1), (40000, 20000, 2)],
)
@pytest.mark.parametrize(("controllers", "folder"), [("cpu", "cpu"), ("cpu,cpuacct", "cpu"), ("cpu,cpuacct",) * 2])
def test_a_quota_of_version_1(
    tmp_path: Path, controllers: str, folder: str, quota: int, period: int, expected: int
) -> None:
    files = {f"{folder}/app/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/app/cpu.cfs_period_us": f"{period}\n"}
    root = make_root(tmp_path, f"5:cpuset:/\n4:{controllers}:/app\n1:name=systemd:/x:y\n0::/\n", files)
    assert usable_cores(root) == expected


@pytest.mark.parametrize("tightest", ["a", "a/b", "a/b/c", ""])
def test_the_tightest_of_nested_quotas_counts(tmp_path: Path, tightest: str) -> None:
    files = {f"{group}/cpu.max": "400000 100000\n" for group in ("", "a", "a/b", "a/b/c")}
    root = make_root(tmp_path, "0::/a/b/c\n", files | {f"{tightest}/cpu.max": "150000 100000\n"})
    assert usable_cores(root) == 1


def test_a_container_sees_its_group_as_the_outermost(tmp_path: Path) -> None:
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}
    assert usable_cores(make_root(tmp_path, "4:cpu,cpuacct:/docker/0123\n", files)) == 3


def test_quotas_of_other_groups_do_not_count(tmp_path: Path) -> None:
    files = {"a/c/cpu.max": "100000 100000\n", "a/b/d/cpu.max": "100000 100000\n"}
    assert usable_cores(make_root(tmp_path, "0::/a/b\n", files)) == MACHINE


def test_without_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == MACHINE


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize(
    ("wanted", "num_shards", "usable", "expected"),
    [(None, 1, 8, 6), (None, 1, 3, 3), (None, 2, 8, 4), (None, 4, 2, 1), (5, 1, 1, 5), (5, 2, 8, 2), (1, 2, 8, 1)],
)
def test_threads_of_a_shard(
    monkeypatch: pytest.MonkeyPatch, wanted: int | None, num_shards: int, usable: int, expected: int
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    assert choose_num_threads(wanted, num_shards) == expected
