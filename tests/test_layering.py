"""The shape of the system, as a test: three leaves and one root, and which module may be imported where."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("scheduler", "adapters", "proto", "engine")
# The inside of engine/, from the ground up: a room imports only from floors below its own, inside functions too, so
# that no circle can hide there. A file at the top of engine/ is a room of its own.
FLOORS = (
    ("errors", "events", "facts", "logs", "outputs"),
    ("kernels", "metrics", "model_files"),
    ("answers", "memory", "text"),
    ("grammar",),
    ("config", "identity"),
    ("arguments", "options", "attention"),
    ("model",),
    ("ipc",),
    ("parallel",),
    ("step",),
    ("cpu", "cuda", "adapter_store"),
    ("startup", "front_end"),
    ("processes",),
    ("requests",),
    ("llm", "async_llm"),
    ("telemetry",),
    ("server",),
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Library -> the rooms of engine/ that may import it. Any room may import a library that is not named here.
ROOMS_OF = {
    "torch": {
        *("attention", "cpu", "cuda", "kernels", "llm", "memory", "model", "model_files", "processes"),
        *("startup", "step"),
    },
    "grpc": {"server", "cli"},
    "asyncio": {"adapter_store", "async_llm", "cli", "ipc", "requests", "server", "telemetry"},
    "msgspec": {"ipc", "server"},
    "prometheus_client": {"telemetry"},
    "tokenizers": {"text"},
    "llguidance": {"grammar"},
    "jinja2": {"text"},
    "transformers": {"text"},
    "huggingface_hub": {"adapter_store", "model_files"},
    "gguf": {"model_files"},
}
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


ENGINE = ROOT / "engine"
ENGINE_FILES = [path for path in SOURCES if path.is_relative_to(ENGINE) and path != ENGINE / "__init__.py"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    parts = ["blora", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def import_nodes(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Returns the imports of a file, those inside functions, too."""
    tree = ast.walk(ast.parse(path.read_text()))
    return [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]


def imports(path: Path) -> Iterator[str]:
    """Returns the full names of the modules that a file imports."""
    package = ["blora", *path.relative_to(ROOT).parent.parts]
    for node in import_nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


def room_of(path: Path) -> str:
    """Returns the room of a file of engine/."""
    return path.relative_to(ENGINE).with_suffix("").parts[0]


def rooms_imported(path: Path) -> set[str]:
    """Returns the rooms of engine/ that a file of engine/ imports from, its own included."""
    package = ["blora", *path.relative_to(ROOT).parent.parts]
    rooms: set[str] = set()
    for node in import_nodes(path):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            if module[:2] == ["blora", "engine"]:
                rooms |= {module[2]} if len(module) > 2 else {alias.name for alias in node.names} & FLOOR_OF.keys()
    return rooms


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_leaves_import_no_sibling_and_nothing_imports_the_engine() -> None:
    for path in SOURCES:
        own, name = path.relative_to(ROOT).parts[0], relative(path)
        allowed = PACKAGES if own == "engine" else (own,)
        for module in imports(path):
            if is_below(module, "blora"):
                assert any(is_below(module, f"blora.{package}") for package in allowed), (name, module)
            assert module.split(".")[0] not in PACKAGES, f"{name}: {module}: import it as blora.{module}"


def test_a_room_imports_only_from_floors_below() -> None:
    for path in ENGINE_FILES:
        room = room_of(path)
        imported = rooms_imported(path) - {room}
        assert not {other for other in imported if FLOOR_OF[other] >= FLOOR_OF[room]}, (
            f"{relative(path)}: {room} is on floor {FLOOR_OF[room]}"
        )


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in ENGINE_FILES} == FLOOR_OF.keys()


def test_every_package_says_what_it_owns() -> None:
    markers = [path for path in SOURCES if path.name == "__init__.py"]
    assert not [relative(path) for path in markers if not ast.get_docstring(ast.parse(path.read_text()))]


def test_rooms_of_libraries_need_them() -> None:
    """An unused permission has to be removed, or it would allow imports that should stay out."""
    users = {(module.split(".")[0], room_of(path)) for path in ENGINE_FILES for module in imports(path)}
    assert not {(library, room) for library, rooms in ROOMS_OF.items() for room in rooms} - users


@pytest.mark.parametrize("package", PACKAGES)
def test_files_of_a_package_import_in_no_circle(package: str) -> None:
    graph = {module_of(path): set(imports(path)) for path in SOURCES if path.relative_to(ROOT).parts[0] == package}
    order = TopologicalSorter({module: graph.keys() & found - {module} for module, found in graph.items()})
    assert set(order.static_order()) == graph.keys()  # a circle is a CycleError


def test_each_library_stays_where_it_belongs() -> None:
    for path in SOURCES:
        check_libraries(path)


def check_libraries(path: Path) -> None:
    name = relative(path)
    found = {module.split(".")[0] for module in imports(path)}
    if name.startswith("scheduler/"):
        assert found.isdisjoint({"torch", "numpy"}), name
    if name.startswith("proto/"):
        assert found.isdisjoint({"torch", "numpy", "transformers"}), name
    if name.startswith("engine/"):
        assert not {library for library in found & ROOMS_OF.keys() if room_of(path) not in ROOMS_OF[library]}, name
    elif not name.startswith("proto/"):
        assert found.isdisjoint({"grpc", "asyncio"}), name
    assert found.isdisjoint({"pickle", "dill", "marshal"}), name
    # The threads of ours are that which an LLM starts when several threads call it, and that which compiles grammars.
    assert "threading" not in found or name in ("engine/step/driver.py", "engine/step/engine_thread.py"), name
    assert "concurrent" not in found or name == "engine/processes/matchers.py", name


def naming(*words: str) -> list[str]:
    """Returns the files in which one of the words stands."""
    return [relative(path) for path in SOURCES if any(word in path.read_text() for word in words)]


def test_only_the_device_names_torch_cuda() -> None:
    """A call that bypasses the device could not be watched; see tests/recording_device.py."""
    assert naming("torch.cuda") == ["engine/cuda/device.py"]


def test_only_the_command_line_reads_the_environment() -> None:
    assert naming("os.environ", "getenv") == ["engine/cli/main.py"]


def test_the_front_end_imports_no_torch() -> None:
    """One process imports them all, one after another, and tells the first that brought a library."""
    modules = [
        "blora.scheduler",
        "blora.adapters",
        "blora.engine",
        "blora.engine.processes.loader",
        "blora.engine.processes.grammar",
        "blora.engine.processes.text",
        "blora.engine.processes.lookout",
        "blora.engine.front_end.front_end",
        "blora.engine.async_llm",
        "blora.engine.server.server",
        "blora.engine.cli.main",
    ]
    check = (
        "import sys; from importlib import import_module\n"
        f"for name in {modules}:\n"
        "    import_module(name)\n"
        "    if {'torch', 'transformers'} & sys.modules.keys(): sys.exit(name)"
    )
    result = subprocess.run([sys.executable, "-c", check], timeout=200, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_client_needs_nothing_but_proto() -> None:
    check = (
        "import sys, blora.proto.client; "
        "sys.exit(any(name.startswith(('torch', 'numpy', 'blora.engine', 'blora.adapters')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], timeout=200).returncode == 0


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
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["*"]  # otherwise it would not be installed


def test_programs_measure_through_public_names() -> None:
    """Programs use public names, as a user's would, so that a user can measure all that they measure."""
    private = re.compile("_[^_]")
    for path in sorted((ROOT / "bench").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and private.match(node.attr):
                is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                assert is_own, f"{relative(path)}: {ast.unparse(node)}"
            if isinstance(node, ast.ImportFrom):
                assert not [alias.name for alias in node.names if private.match(alias.name)], relative(path)


def test_modules_of_bench_are_not_run_as_files() -> None:
    """If a module runs as a file, its folder comes first in the path, and kernels.py takes the place of a package that
    transformers tries to import."""
    commands = re.findall(r"python (.*)", (ROOT / "Makefile").read_text())
    assert commands
    assert not [command for command in commands if re.match(r"bench/\w+\.py", command)]
