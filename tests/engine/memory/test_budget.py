"""Budget: a user's option in bytes, and the bytes that a process may still take, over invented /proc and cgroup
trees."""

import math
from pathlib import Path
from typing import Any

import pytest

from blora.engine.memory.budget import parse_memory, usable_memory

USABLE = 1000


@pytest.mark.parametrize(
    ("memory", "num_bytes"),
    [
        (1, 1),
        (2**40, 2**40),
        (2e9, 2_000_000_000),
        (0.5, 500),
        (1.0, 1000),
        (0.9999, 999),
        ("0.5", 500),
        ("1.0", 1000),
        ("123456", 123456),
        ("2GiB", 2 << 30),
        ("2gib", 2 << 30),
        ("2Gi", 2 << 30),
        ("2GB", 2 * 10**9),
        ("2G", 2 * 10**9),
        ("512M", 512 * 10**6),
        ("512MiB", 512 << 20),
        ("1.5k", 1500),
        ("1.5KiB", 1536),
        ("0.5GiB", 1 << 29),
        ("100B", 100),
        ("  3 MiB ", 3 << 20),
    ],
)
def test_wishes_in_bytes(memory: Any, num_bytes: int) -> None:
    assert parse_memory(memory, USABLE) == num_bytes


@pytest.mark.parametrize(
    "memory",
    [
        *(0, -1, 0.0, -0.5, True, False, math.nan, math.inf, -math.inf),
        *(
            "",
            " ",
            "0",
            "0.0",
            "1.5",
            "-1",
            "-0.5",
            "2 apples",
            "GiB",
            "2TiB",
            "1e9",
            "nan",
            "inf",
            "0x10",
            "1,5",
            "2GiB2",
        ),
        *("0.0GiB", "0.0001k", "9" * 400, "9" * 400 + "GiB", "2\0GiB", "½"),
    ],
    ids=lambda memory: ascii(memory)[:12],
)
def test_wishes_that_mean_nothing_are_value_errors(memory: Any) -> None:
    with pytest.raises(ValueError, match="memory: "):
        parse_memory(memory, USABLE)


# Bytes that a process may still take.


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def make_root(root: Path, available_kb: int, cgroup: str = "") -> Path:
    write(
        root / "proc/meminfo", f"MemTotal:       99999999 kB\nMemAvailable:   {available_kb} kB\nHugePages_Total:  0\n"
    )
    write(root / "proc/self/cgroup", cgroup)
    return root


def limit_v2(root: Path, group: str, limit: str, usage: int, cache: int = 0) -> None:
    folder = root / "sys/fs/cgroup" / group
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{usage}\n")
    write(folder / "memory.stat", f"anon 5\nfile {cache + 7}\ninactive_file {cache}\nactive_file 7\n")


def limit_v1(root: Path, group: str, limit: int, usage: int, cache: int = 0) -> None:
    folder = root / "sys/fs/cgroup/memory" / group
    write(folder / "memory.limit_in_bytes", f"{limit}\n")
    write(folder / "memory.usage_in_bytes", f"{usage}\n")
    write(folder / "memory.stat", f"cache 9\ninactive_file 1\ntotal_inactive_file {cache}\n")


def test_without_groups_it_is_what_the_system_has_left(tmp_path: Path) -> None:
    assert usable_memory(make_root(tmp_path, 4096)) == 4096 * 1024


def test_without_a_cgroup_file_too(tmp_path: Path) -> None:
    root = make_root(tmp_path, 4096)
    (root / "proc/self/cgroup").unlink()
    assert usable_memory(root) == 4096 * 1024


def test_a_limit_of_version_2(tmp_path: Path) -> None:
    root = make_root(tmp_path, 4096, "0::/app\n")
    limit_v2(root, "app", "1000000", 300_000, cache=50_000)
    assert usable_memory(root) == 750_000


def test_a_limit_above_what_the_system_has_left_does_not_count(tmp_path: Path) -> None:
    root = make_root(tmp_path, 100, "0::/app\n")
    limit_v2(root, "app", "1000000", 0)
    assert usable_memory(root) == 100 * 1024


def test_max_is_no_limit(tmp_path: Path) -> None:
    root = make_root(tmp_path, 4096, "0::/app\n")
    limit_v2(root, "app", "max", 300_000)
    assert usable_memory(root) == 4096 * 1024


@pytest.mark.parametrize("tightest", ["a", "a/b", "a/b/c", ""])
def test_the_tightest_of_nested_limits_counts(tightest: str, tmp_path: Path) -> None:
    root = make_root(tmp_path, 1 << 20, "0::/a/b/c\n")
    for group in ("", "a", "a/b", "a/b/c"):
        limit_v2(root, group, "1000" if group == tightest else "1000000", 100)
    assert usable_memory(root) == 900


def test_limits_of_other_groups_do_not_count(tmp_path: Path) -> None:
    root = make_root(tmp_path, 4096, "0::/a/b\n")
    limit_v2(root, "a/c", "1000", 0)
    limit_v2(root, "a/b/d", "1000", 0)
    assert usable_memory(root) == 4096 * 1024


def test_a_parent_that_is_not_shown_is_passed_over(tmp_path: Path) -> None:
    """A container sees its own group as the root of the tree, whichever path the file names."""
    root = make_root(tmp_path, 4096, "0::/docker/0123/app\n")
    limit_v2(root, "", "1000000", 400_000)
    assert usable_memory(root) == 600_000


def test_a_group_above_its_limit_has_no_room(tmp_path: Path) -> None:
    root = make_root(tmp_path, 4096, "0::/app\n")
    limit_v2(root, "app", "1000", 5000)
    assert usable_memory(root) == 0


def test_a_group_without_statistics(tmp_path: Path) -> None:
    root = make_root(tmp_path, 4096, "0::/app\n")
    limit_v2(root, "app", "1000", 100)
    (root / "sys/fs/cgroup/app/memory.stat").unlink()
    assert usable_memory(root) == 900


VERSION_1 = "12:cpu,cpuacct:/other\n5:memory:/docker/app\n1:name=systemd:/init\n0::/system.slice\n"


def test_a_limit_of_version_1(tmp_path: Path) -> None:
    root = make_root(tmp_path, 4096, VERSION_1)
    limit_v1(root, "docker/app", 1_000_000, 300_000, cache=50_000)
    assert usable_memory(root) == 750_000


def test_the_memory_controller_may_share_its_line(tmp_path: Path) -> None:
    root = make_root(tmp_path, 4096, "5:cpuset,memory:/app\n")
    limit_v1(root, "app", 1000, 400)
    assert usable_memory(root) == 600


def test_nested_limits_of_version_1(tmp_path: Path) -> None:
    root = make_root(tmp_path, 4096, VERSION_1)
    limit_v1(root, "docker/app", 9223372036854771712, 300)
    limit_v1(root, "docker", 5000, 1000)
    assert usable_memory(root) == 4000


def test_a_path_with_colons(tmp_path: Path) -> None:
    root = make_root(tmp_path, 4096, "0::/a:b/c\n")
    limit_v2(root, "a:b", "1000", 1)
    assert usable_memory(root) == 999


def test_this_machine_has_memory_left() -> None:
    assert usable_memory() > 0
