"""The shape of the system, as a test: three leaves and one root, and what may be imported where."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("scheduler", "adapters", "proto", "engine")
ASYNCHRONOUS = (
    "engine/server/",
    "engine/async_llm.py",
    "engine/async_adapters.py",
    "engine/engine_connection.py",
    "engine/engine_supervisor.py",
    "engine/adapter_hub.py",
    "engine/adapter_images.py",
    "engine/adapter_reader.py",
    "engine/folder_follower.py",
    "engine/channel.py",
)
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, those inside functions included."""
    package = ["blora", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_leaves_import_no_sibling_and_nothing_imports_the_engine(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    allowed = PACKAGES if own == "engine" else (own,)
    for module in imports(path):
        if is_below(module, "blora"):
            assert any(is_below(module, f"blora.{package}") for package in allowed), module
        assert module.split(".")[0] not in PACKAGES, f"{module}: import it as blora.{module}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_each_library_stays_where_it_belongs(path: Path) -> None:
    name = relative(path)
    found = {module.split(".")[0] for module in imports(path)}
    if name.startswith("scheduler/"):
        assert found.isdisjoint({"torch", "numpy"})
    if name.startswith("proto/"):
        assert found.isdisjoint({"torch", "numpy", "transformers"})
    if not name.startswith(("engine/server/", "proto/")):
        assert "grpc" not in found
    if not name.startswith(ASYNCHRONOUS):
        assert "asyncio" not in found
    assert found.isdisjoint({"pickle", "threading", "dill", "marshal"})


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_the_device_names_torch_cuda(path: Path) -> None:
    """What goes past it could not be watched: see tests/recording_device.py."""
    if relative(path) != "engine/cuda/device.py":
        assert "torch.cuda" not in path.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_the_command_line_reads_the_environment(path: Path) -> None:
    if relative(path) != "engine/server/cli.py":
        text = path.read_text()
        assert "os.environ" not in text and "getenv" not in text


@pytest.mark.parametrize(
    "module",
    [
        "blora.engine",
        "blora.engine.async_llm",
        "blora.engine.front_end.front_end",
        "blora.engine.adapter_loader",
        "blora.engine.server.cli",
        "blora.engine.server.server",
        "blora.adapters",
        "blora.scheduler",
    ],
)
def test_the_front_end_imports_no_torch(module: str) -> None:
    check = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0


def test_a_client_needs_nothing_but_proto() -> None:
    check = (
        "import sys, blora.proto.client; "
        "sys.exit(any(name.startswith(('torch', 'numpy', 'blora.engine', 'blora.adapters')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0


def test_the_package_list_is_the_folders() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    markers = [path for path in [*SOURCES, *(ROOT / "bench").rglob("*.py")] if path.name == "__init__.py"]
    assert listed == {"blora." + ".".join(path.parent.relative_to(ROOT).parts) for path in markers}
    assert not (ROOT / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_are_told_that_the_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["*"]  # or it would not be installed


def test_modules_of_bench_are_not_run_as_files() -> None:
    """Their folder would come first in the path, and kernels.py in the place of a package that transformers tries."""
    commands = re.findall(r"python (.*)", (ROOT / "Makefile").read_text())
    assert commands
    assert not [command for command in commands if re.match(r"bench/\w+\.py", command)]


def test_public_names_are_the_exported_ones() -> None:
    import blora.engine

    assert dir(blora.engine) == sorted(blora.engine.__all__)
    assert all(hasattr(blora.engine, name) for name in blora.engine.__all__)
    assert set(blora.engine.__all__) == set(blora.engine._HOMES)
