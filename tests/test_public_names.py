"""The public names: every type that a public signature names can be imported from where the signature is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("blora.engine", "blora.adapters", "blora.scheduler", "blora.proto.client")
# Objects of these come out of a method: their constructors are no signatures of a user's.
NEVER_CONSTRUCTED = {"GenerationStream", "RowStream", "TokenStream", "Tokenizer"}
Definition = tuple[str, ast.stmt]  # the module, and the statement in it


def path_of(module: str) -> Path | None:
    """Returns the file of a module of blora, or None for any other module."""
    if not module.startswith("blora."):
        return None
    path = ROOT.joinpath(*module.split(".")[1:])
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.exists() else None


@cache
def bindings(module: str) -> dict[str, ast.stmt]:
    """Returns the statement that defines each top-level name of a module of blora, imports for type checkers
    included."""
    path = path_of(module)
    assert path is not None, module
    found: dict[str, ast.stmt] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return found


def definition(module: str, name: str) -> Definition | None:
    """Returns where a name of a module is defined, or None if it comes from outside blora."""
    node = bindings(module).get(name)
    if not isinstance(node, ast.ImportFrom):
        return None if node is None else (module, node)
    source = node.module or ""
    if node.level:
        path = path_of(module)
        assert path is not None
        package = module.split(".")[: None if path.name == "__init__.py" else -1]
        source = ".".join([*package[: len(package) - node.level + 1], *([source] if source else [])])
    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    return None if path_of(source) is None else definition(source, original)


def names_in(annotation: ast.expr | None) -> Iterator[str]:
    """Yields the plain names in an annotation, those in quotes, too. A name reached through a module is public
    there."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        yield from names_in(ast.parse(annotation.value, mode="eval").body)
    elif isinstance(annotation, ast.Name):
        yield annotation.id
    elif annotation is not None and not isinstance(annotation, ast.Attribute):
        for child in ast.iter_child_nodes(annotation):
            yield from names_in(child if isinstance(child, ast.expr) else None)


def annotations(node: ast.stmt) -> Iterator[ast.expr | None]:
    """Yields the annotations in a definition's public signatures: those of a function, of a class's fields and methods,
    or the value of an alias."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            yield argument.annotation
        yield node.returns
    elif isinstance(node, ast.ClassDef):
        for statement in node.body:
            if is_public(node.name, statement):
                yield from annotations(statement)
    elif isinstance(node, ast.AnnAssign):
        yield node.annotation
    elif isinstance(node, ast.Assign):
        yield node.value


def is_public(owner: str, statement: ast.stmt) -> bool:
    if isinstance(statement, ast.AnnAssign):
        return isinstance(statement.target, ast.Name) and not statement.target.id.startswith("_")
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    if statement.name == "__init__":
        return owner not in NEVER_CONSTRUCTED
    return statement.name.startswith("__") or not statement.name.startswith("_")


def is_type_variable(node: ast.stmt) -> bool:
    """Whether a name is bound to a TypeVar, which stands for other types."""
    call = node.value if isinstance(node, ast.Assign) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "TypeVar"


def exported(package: str) -> set[str]:
    names = getattr(import_module(package), "__all__", None)
    if names is not None:
        return set(names)
    return {name for name, node in bindings(package).items() if not name.startswith("_") and not name.isupper()}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_type_of_a_public_signature_is_exported(package: str) -> None:
    names, missing = exported(package), set[str]()
    known = {found: name for name in names if (found := definition(package, name)) is not None}
    assert known
    for (module, node), owner in known.items():
        for annotation in annotations(node):
            for name in names_in(annotation):
                found = definition(module, name)
                if found is not None and found not in known and not is_type_variable(found[1]):
                    missing.add(f"{name} of {owner}")
    assert not missing


def test_every_error_is_exported() -> None:
    engine = import_module("blora.engine")
    assert set(import_module("blora.engine.errors").__all__) <= set(engine.__all__)


def test_names_are_loaded_when_they_are_used() -> None:
    """A client of an engine in another process has no use for torch."""
    check = "import sys, blora.engine as e; e.AsyncLLM, e.SamplingParams, e.Tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0


def test_what_type_checkers_see_is_what_is_there() -> None:
    engine = import_module("blora.engine")
    assert dir(engine) == sorted(engine.__all__)
    assert all(hasattr(engine, name) for name in engine.__all__)
    typed = {name for name in engine.__all__ if definition("blora.engine", name) is not None}
    assert typed == set(engine.__all__)
